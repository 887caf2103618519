// A primary that accepts writes is healthy. The first time, the replica set has to be initiated for that.
const password = require("fs").readFileSync("/run/secrets/mongo_root_password", "utf8").split("\n")[0];

db.getSiblingDB("admin").auth("root", password);
try {
    rs.status();
} catch (error) {
    if (error.codeName !== "NotYetInitialized") {
        throw error;
    }
    rs.initiate({ _id: "imqtt", members: [{ _id: 0, host: "mongo:27017" }] });
}
quit(db.hello().isWritablePrimary ? 0 : 1);
