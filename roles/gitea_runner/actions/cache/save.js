':' //; exec python3 "${0%/*}/cache.py" save
const { spawnSync } = require("node:child_process");
const done = spawnSync("python3", [__dirname + "/cache.py", "save"], { stdio: "inherit" });
process.exit(done.status ?? 1);
