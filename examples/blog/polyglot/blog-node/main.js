// blog: which blogs there are and whose they are. The same service as src/bin/blog-blog.rs, in Node with grpc-js.
import { randomUUID } from "node:crypto";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { ReflectionService } from "@grpc/reflection";
import { HealthImplementation } from "grpc-health-check";
import { Store } from "./store.js";

const NAME = "examples.blog.service.blog.Blog";
// How long calls in flight may go on after SIGTERM.
const GRACE_MS = 5000;

const protos = join(dirname(fileURLToPath(import.meta.url)), "../../proto");
const load = (name) =>
  loader.loadSync(`${name}.proto`, { includeDirs: [protos], keepCase: true, longs: Number, defaults: true });
const definition = load("blog");
const { Blog } = grpc.loadPackageDefinition(definition).examples.blog.service.blog;
const { User } = grpc.loadPackageDefinition(load("user")).examples.blog.service.user;

class Refused extends Error {
  constructor(code, details) {
    super(details);
    this.code = code;
    this.details = details;
  }
}

function variable(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

function line(field, text, least, most) {
  if (/\p{Cc}/u.test(text)) throw new Refused(grpc.status.INVALID_ARGUMENT, `${field} must be one line`);
  if (text.trim() === "") throw new Refused(grpc.status.INVALID_ARGUMENT, `${field} must not be blank`);
  const length = [...text].length;
  if (length < least || length > most) {
    throw new Refused(grpc.status.INVALID_ARGUMENT, `${field} must have ${least} to ${most} characters`);
  }
}

const store = await Store.open("blog");
const users = new User(variable("USER_ADDR"), grpc.credentials.createInsecure());

// A neighbour's refusal becomes this service's own: the code and the words, not the headers.
const userExists = (id) =>
  new Promise((resolve, reject) => {
    users.getUser({ auth_id: id }, (refused) => (refused ? reject(new Refused(refused.code, refused.details)) : resolve()));
  });

async function createBlog({ owner_id, title }) {
  line("title", title, 1, 120);
  await userExists(owner_id);
  const blog = { id: randomUUID(), owner_id, title, created_at: Math.floor(Date.now() / 1000) };
  if (!store.add(blog)) {
    throw new Refused(grpc.status.ALREADY_EXISTS, `the owner has a blog "${title}" already`);
  }
  console.log(`blog ${blog.id} opened`);
  return blog;
}

async function getBlog({ id }) {
  const blog = store.find(id);
  if (!blog) throw new Refused(grpc.status.NOT_FOUND, `no blog ${id}`);
  return blog;
}

const answer = (work) => (call, callback) => {
  work(call.request).then(
    (done) => callback(null, done),
    (cause) => {
      if (cause instanceof Refused) return callback({ code: cause.code, details: cause.details });
      console.error(cause);
      return callback({ code: grpc.status.INTERNAL, details: "the database refused" });
    },
  );
};

const server = new grpc.Server();
server.addService(Blog.service, { createBlog: answer(createBlog), getBlog: answer(getBlog) });
const health = new HealthImplementation({ "": "SERVING", [NAME]: "SERVING" });
health.addToServer(server);
new ReflectionService(definition).addToServer(server);

const address = `${process.env.HOST || "127.0.0.1"}:${variable("PORT")}`;
server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (failed) => {
  if (failed) {
    console.error(`cannot listen on ${address}: ${failed.message}`);
    process.exit(1);
  }
  console.log(`listening on ${address}`);
});

function stop() {
  console.log("stopping");
  health.setStatus("", "NOT_SERVING");
  health.setStatus(NAME, "NOT_SERVING");
  // A client may keep a stream open for ever (health's Watch does), so the wait has an end.
  setTimeout(() => server.forceShutdown(), GRACE_MS).unref();
  server.tryShutdown(() => process.exit(0));
}
process.once("SIGTERM", stop);
process.once("SIGINT", stop);
