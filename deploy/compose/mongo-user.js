// Creates the workers' account. The image runs this once, when its volume is empty and nobody can connect yet.
const password = require("fs").readFileSync("/run/secrets/store_password", "utf8").split("\n")[0];

db.getSiblingDB("imqtt").createUser({
    user: "imqtt",
    pwd: password,
    roles: [{ role: "readWrite", db: "imqtt" }],
});
