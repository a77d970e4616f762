// Calls Holdfast from Node.js with grpc-js: `node client.js localhost:7400`. The property example must run meanwhile (`make run`).
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const PROTOS = path.join(__dirname, "..", "..", "proto");

/** A client of the cluster behind a gateway. */
class Client {
  constructor(gateway, credentials = grpc.credentials.createInsecure()) {
    const definition = protoLoader.loadSync("holdfast/v1/objects.proto", { includeDirs: [PROTOS], longs: String, enums: String });
    const { Objects } = grpc.loadPackageDefinition(definition).holdfast.v1;
    this.objects = new Objects(gateway, credentials);
  }

  /** Call a method of an object with named arguments, and return its result. `options`: fields of CallRequest, such as idempotencyKey. */
  call(kind, key, method, args = {}, options = {}) {
    const request = { kind, key, method, json: JSON.stringify(args), wideIntegersAsText: true, ...options };
    const deadline = Date.now() + (options.timeoutMs ?? 30_000) + 300;
    return new Promise((resolve, reject) => {
      this.objects.Call(request, { deadline }, (error, response) => (error ? reject(error) : resolve(JSON.parse(response.json))));
    });
  }

  close() {
    this.objects.close();
  }
}

async function main() {
  const client = new Client(process.argv[2] ?? "localhost:7400");
  try {
    await client.call("Property", "from-node", "update", { change: { type: "PRICE_UPDATE", value: 350_000 } });
    const property = await client.call("Property", "from-node", "snapshot");
    console.log(`Property/from-node costs ${property.price}`);

    // The key names one effect: a call that is sent twice with it takes effect once.
    const once = { idempotencyKey: "node-example-1" };
    for (let i = 0; i < 2; i++) {
      await client.call("Property", "from-node", "update", { change: { type: "PRICE_UPDATE", value: 360_000 } }, once);
    }

    // The reply comes when the cluster has stored the call. The call runs later, once.
    await client.call("Property", "from-node", "update", { change: { type: "PRICE_UPDATE", value: 370_000 } }, { send: true });

    // Errors are a gRPC status. If the object refuses, the status is FAILED_PRECONDITION.
    try {
      await client.call("Property", "from-node", "update", { change: { type: "PRICE_UPDATE", value: -1 } });
    } catch (error) {
      console.log(`refused: ${grpc.status[error.code]}: ${error.details}`);
    }
    try {
      await client.call("Property", "from-node", "update", { change: { type: "PRICE_UPDATE" } });
    } catch (error) {
      console.log(`wrong: ${grpc.status[error.code]}: ${error.details}`);
    }
  } finally {
    client.close();
  }
}

module.exports = { Client };
if (require.main === module) {
  main().catch((error) => {
    console.error(error);
    process.exitCode = 1;
  });
}
