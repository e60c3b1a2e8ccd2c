package main

import (
	"context"
	"errors"
	"log"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	blogpb "example.test/blog/post/pb/blog"
	postpb "example.test/blog/post/pb/post"
)

const (
	usualPage   = 10
	largestPage = 50
	// A full page of the longest posts stays below the 4 MiB that a gRPC client takes in one message.
	longestBody = 20_000
)

type posts struct {
	postpb.UnimplementedPostServer
	store *store
	blogs blogpb.BlogClient
}

func (p *posts) CreatePost(ctx context.Context, asked *postpb.CreatePostRequest) (*postpb.PostInfo, error) {
	if err := line("title", asked.Title, 1, 200); err != nil {
		return nil, err
	}
	if err := prose("body", asked.Body, 1, longestBody); err != nil {
		return nil, err
	}
	blog, err := p.blog(ctx, asked.BlogId)
	if err != nil {
		return nil, err
	}
	if blog.OwnerId != asked.AuthorId {
		return nil, status.Error(codes.PermissionDenied, "only the owner of a blog writes in it")
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, status.Error(codes.Internal, "no random numbers")
	}
	post := &postpb.PostInfo{
		Id: id.String(), BlogId: asked.BlogId, AuthorId: asked.AuthorId, Title: asked.Title, Body: asked.Body,
		CreatedAt: time.Now().Unix(),
	}
	if err := p.store.add(ctx, post); err != nil {
		return nil, refused(err)
	}
	log.Printf("post %s in blog %s", post.Id, post.BlogId)
	return post, nil
}

func (p *posts) ListPosts(ctx context.Context, asked *postpb.ListPostsRequest) (*postpb.ListPostsResponse, error) {
	size, before, err := page(asked.PageSize, asked.PageToken)
	if err != nil {
		return nil, err
	}
	rows, total, err := p.store.list(ctx, asked.BlogId, before, size+1)
	if err != nil {
		return nil, refused(err)
	}
	// Where there is a post there is a blog; only an empty list leaves the question open.
	if total == 0 {
		if _, err := p.blog(ctx, asked.BlogId); err != nil {
			return nil, err
		}
	}
	answer := &postpb.ListPostsResponse{Total: total}
	if len(rows) > size {
		rows = rows[:size]
		answer.NextPageToken = strconv.FormatInt(rows[size-1].number, 10)
	}
	for _, row := range rows {
		answer.Posts = append(answer.Posts, row.post)
	}
	return answer, nil
}

// blog asks for the blog; the neighbour's refusal becomes this service's own: the code and the words, not the headers.
func (p *posts) blog(ctx context.Context, id string) (*blogpb.BlogInfo, error) {
	blog, err := p.blogs.GetBlog(ctx, &blogpb.GetBlogRequest{Id: id})
	if err != nil {
		refusal := status.Convert(err)
		return nil, status.Error(refusal.Code(), refusal.Message())
	}
	return blog, nil
}

func refused(err error) error {
	// The caller has gone, or its time is up: nothing is wrong with the database.
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return status.FromContextError(err).Err()
	}
	log.Printf("database: %v", err)
	return status.Error(codes.Internal, "the database refused")
}

func line(field, text string, least, most int) error {
	if strings.ContainsFunc(text, unicode.IsControl) {
		return status.Errorf(codes.InvalidArgument, "%s must be one line", field)
	}
	return prose(field, text, least, most)
}

func prose(field, text string, least, most int) error {
	if strings.TrimSpace(text) == "" {
		return status.Errorf(codes.InvalidArgument, "%s must not be blank", field)
	}
	if length := utf8.RuneCountInString(text); length < least || length > most {
		return status.Errorf(codes.InvalidArgument, "%s must have %d to %d characters", field, least, most)
	}
	return nil
}

// page reads what the caller asked for: how many posts, and before which one.
func page(size int32, token string) (int, int64, error) {
	if size < 0 {
		return 0, 0, status.Error(codes.InvalidArgument, "page_size must not be negative")
	}
	if size == 0 {
		size = usualPage
	}
	before := int64(math.MaxInt64)
	if token != "" {
		number, err := strconv.ParseInt(token, 10, 64)
		if err != nil || number <= 0 {
			return 0, 0, status.Error(codes.InvalidArgument, "page_token was not given out by this service")
		}
		before = number
	}
	return int(min(size, largestPage)), before, nil
}
