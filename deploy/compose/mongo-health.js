// Healthy is a primary that takes writes. The first time, what it needs for that is to be made a replica set.
const word = require("fs").readFileSync("/run/secrets/mongo_root_password", "utf8").split("\n")[0];

db.getSiblingDB("admin").auth("root", word);
try {
    rs.status();
} catch (error) {
    if (error.codeName !== "NotYetInitialized") {
        throw error;
    }
    rs.initiate({ _id: "imqtt", members: [{ _id: 0, host: "mongo:27017" }] });
}
quit(db.hello().isWritablePrimary ? 0 : 1);
