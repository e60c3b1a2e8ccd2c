"""The blog's whole story over HTTP, from sign-up to a page with readers, with everything that must be refused on the way.

    python3 journey.py http://127.0.0.1:8080

Prints `journey: N checks passed`; ends with 1 at the first answer that is not as it should be. It makes up its own names,
so it can be run again and again against the same data.
"""

import http.client
import json
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlsplit

DEADLINE_SECONDS = 30


class Failed(Exception):
    pass


class Blog:
    """A client that says of each call what must come back, and counts what did."""

    def __init__(self, base):
        url = urlsplit(base)
        self.host, self.port = url.hostname, url.port or 80
        self.checks = 0

    def call(self, method, path, body=None, token=None, raw=None):
        content = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if content is not None else {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE_SECONDS)
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except OSError as cause:
            raise Failed(f"{method} {path}: no answer: {cause}") from None
        finally:
            connection.close()

    def expect(self, status, method, path, body=None, **how):
        got, content = self.call(method, path, body, **how)
        if got != status:
            raise Failed(f"{method} {path}: expected {status}, got {got}: {content.decode(errors='replace')}")
        try:
            answer = json.loads(content)
        except ValueError:
            raise Failed(f"{method} {path}: {status} without JSON: {content!r}") from None
        self.checks += 1
        if status >= 400:
            error = answer.get("error", {})
            for field in ("code", "message"):
                self.that(bool(error.get(field)), f"{method} {path}: {status} without error.{field}: {answer}")
        return answer

    def refused(self, status, code, *call, **how):
        answer = self.expect(status, *call, **how)
        self.same(answer["error"]["code"], code, f"the code of {status} for {call[0]} {call[1]}")

    def that(self, true, otherwise):
        if not true:
            raise Failed(otherwise)
        self.checks += 1

    def same(self, got, wanted, what):
        self.that(got == wanted, f"{what}: expected {wanted!r}, got {got!r}")


def sign_up(blog, name):
    user_id = f"{name}-{secrets.token_hex(6)}"
    account = {
        "user_id": user_id,
        "password": f"secret of {name}",
        "name": name.capitalize(),
        "email": f"{user_id}@Example.org",
    }
    free = blog.expect(200, "GET", f"/v1/user-ids/{user_id}")
    blog.same(free, {"user_id": user_id, "available": True}, "a new user id")
    made = blog.expect(201, "POST", "/v1/users", account)
    blog.same(made["user_id"], user_id, "the user id signed up")
    blog.same(made["name"], account["name"], "the name signed up")
    blog.same(made["email"], account["email"].lower(), "the e-mail is kept in lower case")
    taken = blog.expect(200, "GET", f"/v1/user-ids/{user_id}")
    blog.same(taken["available"], False, "a taken user id")
    session = blog.expect(201, "POST", "/v1/sessions", {"user_id": user_id, "password": account["password"]})
    blog.same(session["id"], made["id"], "whose session it is")
    return account, made["id"], session["token"]


def accounts(blog):
    account, owner, token = sign_up(blog, "ada")
    user_id, password = account["user_id"], account["password"]

    other = f"other-{secrets.token_hex(6)}"
    blog.refused(409, "already_exists", "POST", "/v1/users", {**account, "email": f"{other}@example.org"})
    blog.refused(409, "already_exists", "POST", "/v1/users", {**account, "user_id": other})
    undone = blog.expect(200, "GET", f"/v1/user-ids/{other}")
    blog.same(undone["available"], True, "the user id of a sign-up that failed at its e-mail")
    blog.refused(409, "already_exists", "POST", "/v1/users", {**account, "user_id": other, "email": account["email"].upper()})

    def invalid(**wrong):
        blog.refused(422, "invalid", "POST", "/v1/users", {**account, "user_id": other, "email": f"{other}@example.org", **wrong})
        undone = blog.expect(200, "GET", f"/v1/user-ids/{other}")
        blog.same(undone["available"], True, f"the user id of a sign-up refused for {wrong}")

    for wrong in ({"password": "short"}, {"email": "no address"}, {"email": "a@b"}, {"name": " "}, {"name": "two\nlines"}):
        invalid(**wrong)
    for wrong in ("A B", "ab", "x" * 33, "Ada"):
        blog.refused(422, "invalid", "POST", "/v1/users", {**account, "user_id": wrong})
        blog.refused(422, "invalid", "GET", f"/v1/user-ids/{quote(wrong)}")
    blog.refused(422, "invalid", "POST", "/v1/users", {"user_id": other})
    blog.refused(422, "invalid", "POST", "/v1/users", {**account, "user_id": 7})
    blog.refused(400, "malformed", "POST", "/v1/users", raw=b"{\"user_id\": ")

    blog.refused(401, "unauthenticated", "POST", "/v1/sessions", {"user_id": user_id, "password": "not the password"})
    blog.refused(401, "unauthenticated", "POST", "/v1/sessions", {"user_id": other, "password": password})
    blog.refused(422, "invalid", "POST", "/v1/sessions", {"user_id": user_id})
    again = blog.expect(201, "POST", "/v1/sessions", {"user_id": user_id, "password": password})
    blog.that(again["token"] != token, "two sessions have one token")

    # Of ten at once, one gets the user id.
    contested = {**account, "user_id": f"contested-{secrets.token_hex(6)}"}
    emails = [f"{contested['user_id']}-{i}@example.org" for i in range(10)]
    with ThreadPoolExecutor(10) as pool:
        done = pool.map(lambda email: blog.call("POST", "/v1/users", {**contested, "email": email})[0], emails)
        blog.same(sorted(done), [201] + [409] * 9, "ten sign-ups for one user id")
    return owner, token


def blogs(blog, owner, token):
    title = f"Notes {secrets.token_hex(4)} äöü"
    made = blog.expect(201, "POST", "/v1/blogs", {"title": title}, token=token)
    blog.same((made["title"], made["owner_id"]), (title, owner), "the blog made")
    blog.same(blog.expect(200, "GET", f"/v1/blogs/{made['id']}"), made, "the blog read")

    blog.refused(409, "already_exists", "POST", "/v1/blogs", {"title": title}, token=token)
    blog.refused(401, "unauthenticated", "POST", "/v1/blogs", {"title": title})
    blog.refused(401, "unauthenticated", "POST", "/v1/blogs", {"title": title}, token="not-a-token")
    blog.refused(422, "invalid", "POST", "/v1/blogs", {"title": ""}, token=token)
    blog.refused(422, "invalid", "POST", "/v1/blogs", {"title": "x" * 121}, token=token)
    blog.refused(422, "invalid", "POST", "/v1/blogs", {"name": title}, token=token)
    blog.refused(404, "not_found", "GET", "/v1/blogs/no-such-blog")
    return made


def posts(blog, made, token, stranger):
    path = f"/v1/blogs/{made['id']}/posts"
    empty = blog.expect(200, "GET", path)
    blog.same(empty, {"posts": [], "next_page_token": "", "total": 0}, "a blog without posts")

    written = []
    for number in range(1, 14):
        post = {"title": f"Post {number}", "body": f"Line one\nof post {number} €"}
        answer = blog.expect(201, "POST", path, post, token=token)
        blog.same({key: answer[key] for key in post}, post, "the post written")
        blog.same((answer["blog_id"], answer["author_id"]), (made["id"], made["owner_id"]), "where the post stands")
        written.insert(0, answer)

    first = blog.expect(200, "GET", path)
    blog.same((first["posts"], first["total"]), (written[:10], 13), "the first page, newest first")
    second = blog.expect(200, "GET", f"{path}?page_token={quote(first['next_page_token'])}")
    blog.same((second["posts"], second["next_page_token"]), (written[10:], ""), "the last page")
    seen, token_ = [], ""
    for _ in range(5):
        page = blog.expect(200, "GET", f"{path}?page_size=3&page_token={quote(token_)}")
        seen, token_ = seen + page["posts"], page["next_page_token"]
    blog.same((seen, token_), (written, ""), "pages of three")
    all_of_them = blog.expect(200, "GET", f"{path}?page_size=100000")
    blog.same(all_of_them["posts"], written, "one page larger than allowed")

    blog.refused(422, "invalid", "GET", f"{path}?page_size=-1")
    blog.refused(422, "invalid", "GET", f"{path}?page_size=many")
    blog.refused(422, "invalid", "GET", f"{path}?page_token=mine")
    blog.refused(404, "not_found", "GET", "/v1/blogs/no-such-blog/posts")
    post = {"title": "Post", "body": "Body"}
    blog.refused(404, "not_found", "POST", "/v1/blogs/no-such-blog/posts", post, token=token)
    blog.refused(401, "unauthenticated", "POST", path, post)
    blog.refused(403, "forbidden", "POST", path, post, token=stranger)
    blog.refused(422, "invalid", "POST", path, {**post, "title": "two\nlines"}, token=token)
    blog.refused(422, "invalid", "POST", path, {**post, "title": "x" * 201}, token=token)
    blog.refused(422, "invalid", "POST", path, {**post, "body": "\n "}, token=token)
    blog.refused(422, "invalid", "POST", path, {**post, "body": "x" * 20001}, token=token)
    # The most that is allowed, in characters of four bytes.
    large = blog.expect(201, "POST", path, {**post, "body": "\U0001f600" * 20000}, token=token)
    blog.same(len(large["body"]), 20000, "the length of the largest post")
    return [large, *written]


def readers(blog, made):
    path = f"/v1/blogs/{made['id']}/subscriptions"
    _, reader, token = sign_up(blog, "bob")
    answer = blog.expect(201, "POST", path, token=token)
    blog.same((answer["blog_id"], answer["subscriber_id"]), (made["id"], reader), "the subscription made")
    blog.refused(409, "already_exists", "POST", path, token=token)
    blog.refused(401, "unauthenticated", "POST", path)
    blog.refused(404, "not_found", "POST", "/v1/blogs/no-such-blog/subscriptions", token=token)

    path = f"/v1/blogs/{made['id']}/visits"
    first = blog.expect(201, "POST", path, {"visitor": "carol"})
    blog.same(first, {"blog_id": made["id"], "visits": 1, "visitors": 1, "counted": True}, "the first visit")
    # Twice at most once a day; the day may change between two calls, so only what cannot happen is refused.
    got, content = blog.call("POST", path, {"visitor": "carol"})
    blog.that(got in (200, 201) and json.loads(content)["visitors"] == 1, f"the same visitor again: {got} {content}")
    blog.expect(201, "POST", path, {"visitor": "dörte"})
    blog.refused(422, "invalid", "POST", path, {"visitor": ""})
    blog.refused(422, "invalid", "POST", path, {})
    blog.refused(404, "not_found", "POST", "/v1/blogs/no-such-blog/visits", {"visitor": "carol"})
    return token


def page(blog, made, written, owner):
    answer = blog.expect(200, "GET", f"/v1/blogs/{made['id']}/page")
    blog.same(answer["blog"], made, "the page's blog")
    blog.same(answer["owner"], {"id": owner, "name": "Ada"}, "the page's owner")
    blog.same(answer["posts"]["posts"], written[:10], "the page's posts")
    blog.same(answer["posts"]["total"], len(written), "the page's number of posts")
    blog.same((answer["visitors"], answer["subscribers"]), (2, 1), "the page's readers")
    blog.that(answer["visits"] >= 2, f"the page's visits: {answer['visits']}")
    blog.refused(404, "not_found", "GET", "/v1/blogs/no-such-blog/page")
    with ThreadPoolExecutor(8) as pool:
        done = pool.map(lambda _: blog.call("GET", f"/v1/blogs/{made['id']}/page"), range(64))
        blog.same({(status, json.loads(content) == answer) for status, content in done}, {(200, True)}, "64 readers at once")


def edges(blog):
    got, content = blog.call("GET", "/healthz")
    blog.same((got, content), (200, b"ok\n"), "GET /healthz")
    blog.refused(404, "not_found", "GET", "/v1/nothing")
    blog.refused(405, "method_not_allowed", "DELETE", "/v1/users")
    blog.refused(404, "not_found", "GET", f"/v1/blogs/{quote('a/../b?c#d', safe='')}")


def main():
    if len(sys.argv) != 2 or not sys.argv[1].startswith("http://"):
        print("usage: journey.py http://HOST:PORT", file=sys.stderr)
        return 2
    blog = Blog(sys.argv[1])
    try:
        edges(blog)
        owner, token = accounts(blog)
        made = blogs(blog, owner, token)
        stranger = sign_up(blog, "eve")[2]
        written = posts(blog, made, token, stranger)
        readers(blog, made)
        page(blog, made, written, owner)
    except Failed as failed:
        print(f"journey: failed after {blog.checks} checks: {failed}", file=sys.stderr)
        return 1
    print(f"journey: {blog.checks} checks passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
