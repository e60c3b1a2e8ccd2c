package main

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	postpb "example.test/blog/post/pb/post"
	_ "modernc.org/sqlite" // SQLite without cgo, as database/sql's driver "sqlite"
)

const schema = `
CREATE TABLE IF NOT EXISTS post (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, blog_id TEXT NOT NULL, author_id TEXT NOT NULL,
    title TEXT NOT NULL, body TEXT NOT NULL, created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS post_blog ON post(blog_id, number);`

type store struct{ *sql.DB }

type row struct {
	number int64
	post   *postpb.PostInfo
}

// openStore opens $DB, or post.db in $DATA_DIR (the working directory when that is unset).
func openStore() (*store, error) {
	path := os.Getenv("DB")
	if path == "" {
		path = filepath.Join(os.Getenv("DATA_DIR"), "post.db")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// SQLite's switch to WAL fails at once when another replica is just at it, whatever the busy timeout says.
	lock, err := os.Create(strings.TrimSuffix(path, filepath.Ext(path)) + ".lock")
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", path+"?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)")
	if err != nil {
		return nil, err
	}
	if _, err := db.Exec(schema); err != nil {
		db.Close()
		return nil, err
	}
	return &store{db}, nil
}

func (s *store) add(ctx context.Context, post *postpb.PostInfo) error {
	_, err := s.ExecContext(ctx,
		"INSERT INTO post (id, blog_id, author_id, title, body, created_at) VALUES (?, ?, ?, ?, ?, ?)",
		post.Id, post.BlogId, post.AuthorId, post.Title, post.Body, post.CreatedAt)
	return err
}

// list reads up to limit posts of a blog that are older than the one numbered before, and counts all of the blog.
func (s *store) list(ctx context.Context, blogID string, before int64, limit int) ([]row, int64, error) {
	var total int64
	count := s.QueryRowContext(ctx, "SELECT count(*) FROM post WHERE blog_id = ?", blogID)
	if err := count.Scan(&total); err != nil {
		return nil, 0, err
	}
	found, err := s.QueryContext(ctx,
		`SELECT number, id, blog_id, author_id, title, body, created_at FROM post
		 WHERE blog_id = ? AND number < ? ORDER BY number DESC LIMIT ?`, blogID, before, limit)
	if err != nil {
		return nil, 0, err
	}
	defer found.Close()
	var rows []row
	for found.Next() {
		r := row{post: &postpb.PostInfo{}}
		p := r.post
		if err := found.Scan(&r.number, &p.Id, &p.BlogId, &p.AuthorId, &p.Title, &p.Body, &p.CreatedAt); err != nil {
			return nil, 0, err
		}
		rows = append(rows, r)
	}
	return rows, total, found.Err()
}
