// The blogs' database. sql.js is SQLite compiled to WebAssembly: it needs no compiler and no download of a binary, and
// keeps the database in memory. So every change writes the file anew, beside the old one and then in its place; that is
// enough for an example, costs more the more blogs there are, and allows no second replica on the same file.
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readFileSync, renameSync, writeSync } from "node:fs";
import { dirname, join } from "node:path";
import initSqlJs from "sql.js";

const SCHEMA = `
CREATE TABLE IF NOT EXISTS blog (
    id TEXT PRIMARY KEY, owner_id TEXT NOT NULL, title TEXT NOT NULL, created_at INTEGER NOT NULL,
    UNIQUE (owner_id, title)
) STRICT;`;

export class Store {
  // Opens $DB, or <service>.db in $DATA_DIR (the working directory when that is unset).
  static async open(service) {
    const path = process.env.DB || join(process.env.DATA_DIR || "", `${service}.db`);
    mkdirSync(dirname(path), { recursive: true });
    const sqlite = await initSqlJs();
    const store = new Store(path, new sqlite.Database(existsSync(path) ? readFileSync(path) : undefined));
    store.db.run(SCHEMA);
    store.write();
    return store;
  }

  constructor(path, db) {
    this.path = path;
    this.db = db;
  }

  // False when the owner has a blog of that title.
  add({ id, owner_id, title, created_at }) {
    this.db.run("INSERT INTO blog (id, owner_id, title, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", [
      id,
      owner_id,
      title,
      created_at,
    ]);
    if (this.db.getRowsModified() === 0) return false;
    try {
      this.write();
    } catch (cause) {
      this.db.run("DELETE FROM blog WHERE id = ?", [id]);
      throw cause;
    }
    return true;
  }

  find(id) {
    const query = this.db.prepare("SELECT id, owner_id, title, created_at FROM blog WHERE id = ?");
    try {
      query.bind([id]);
      return query.step() ? query.getAsObject() : undefined;
    } finally {
      query.free();
    }
  }

  write() {
    const next = `${this.path}.next`;
    const file = openSync(next, "w");
    try {
      writeSync(file, this.db.export());
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(next, this.path);
  }
}
