//! The numbered mistakes: each code with its cause and what to do about it. Codes are never used again for another thing.

use serde::Serialize;

/// A numbered mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Code {
    /// `OR1001`; from `OR2001` on they are warnings.
    pub code: &'static str,
    /// What it is, in a few words.
    pub title: &'static str,
    /// What happened, and why it is refused or warned of.
    pub cause: &'static str,
    /// What to do about it.
    pub fix: &'static str,
}

/// Explains a code, in whatever case it is written.
#[must_use]
pub fn code(name: &str) -> Option<&'static Code> {
    ALL.iter().copied().find(|code| code.code.eq_ignore_ascii_case(name))
}

/// Every code, in order.
#[must_use]
pub fn codes() -> &'static [&'static Code] {
    ALL
}

/// Codes from here on are warnings.
pub(super) const FIRST_WARNING: &str = "OR2001";

macro_rules! codes {
    ($($name:ident = $code:literal $title:literal $cause:literal $fix:literal;)*) => {
        $(pub(super) const $name: &Code = &Code { code: $code, title: $title, cause: $cause, fix: $fix };)*
        const ALL: &[&Code] = &[$($name),*];
    };
}

codes! {
    // One value.
    NOT_A_VALUE = "OR1001" "a value that cannot be read"
        "A duration, a share, a rate, a size, a moment or a way to end is not written as it must be."
        "Durations are 500ms, 2s, 5m, 1h (1 ms to less than a day); shares 50%; rates 100/s; sizes 1kb; moments 2026-11-24T10:00:00Z.";
    OVER_A_HUNDRED = "OR1002" "a share of more than 100%"
        "More than all requests, answers or endpoints was asked for."
        "Write a share from 0% to 100%.";
    RATE_ZERO = "OR1003" "a rate of 0"
        "A rate limit of 0 would refuse every request that it matches."
        "Allow at least one; to close something, use `allow`, or a route with `respond: {status: 403}`.";
    LOAD_IS_NO_FAILURE = "OR1004" "load is counted as failure"
        "429 and RESOURCE_EXHAUSTED say that an endpoint has enough to do. Counting them as failures would eject it and load the others more."
        "Leave them out of `failures`; use `concurrency`, `admission` or `rate_limits` against load.";
    ONE_OF = "OR1005" "not exactly one of several keys"
        "Of some keys exactly one must be given: none says nothing, and two contradict each other."
        "Keep one of the keys that the message names.";
    OUT_OF_RANGE = "OR1006" "a number that is too small or too large"
        "The number is outside of what the key takes; the hint of the message says from where to where."
        "Write a number of that range, or leave the key out for its default.";

    // Time and tries.
    RETRY_WITHOUT_TIME = "OR1101" "tries without a bound on time"
        "`retry.attempts` is more than 1 and neither `timeout` nor `retry.per_try` is set: a try that hangs is never given up, and a caller could wait for ever."
        "Set `timeout`, or `retry.per_try`, or both.";
    TRY_LONGER_THAN_ALL = "OR1102" "one try may take longer than the whole request"
        "`retry.per_try` is more than `timeout`, so that it never ends a try."
        "Make `retry.per_try` shorter: about `timeout` divided by `retry.attempts`.";
    BACKOFF = "OR1103" "the longest wait is shorter than the first"
        "`retry.max_backoff` is less than `retry.backoff`."
        "Make it at least as long, or leave it out: it is ten times `retry.backoff` then.";
    HEDGE_NOT_IDEMPOTENT = "OR1104" "a second request for what must not be done twice"
        "`hedge` sends a request twice. That is right only where it may be done twice: the route says `idempotent: true`, or all of its matches allow only GET, HEAD, OPTIONS, TRACE, PUT, DELETE."
        "Put `hedge` into a route with `match: {methods: [GET]}`, or say `idempotent: true` where that is so.";
    BUDGET_IN_ROUTE = "OR1105" "a retry budget in a route"
        "The budget bounds all tries of a caller to the service, so it cannot differ by route."
        "Move `retry.budget` to the service or to `defaults`.";
    HEDGE_TOO_LATE = "OR1106" "the second request comes after the end"
        "`hedge.after` is not less than `timeout`, so that it is never sent."
        "Make it shorter, or leave it out for `p95`.";

    // Breaker, outlier, limits.
    NO_CRITERION = "OR1201" "nothing to decide by"
        "A breaker needs at least one of `failures`, `rate`, `slow_rate` above 0, and so does `outlier`; otherwise it does nothing."
        "Set one of them, or write `off`.";
    SLOW_ALONE = "OR1202" "half of a criterion"
        "`slow` says which answers are slow, `slow_rate` how many of them are too many: neither works alone."
        "Set both, or none.";
    MAX_BELOW_FIRST = "OR1203" "a maximum below what it bounds"
        "`max_cooldown` is less than `cooldown`, `max_ejection` less than `ejection`, or `min` more than `max`."
        "Make the maximum at least as large.";
    BAD_LIMIT = "OR1204" "no limit that can be"
        "`admission.limit` is neither a number from 1 nor `gradient` or `aimd`, or a bound that is only for the adaptive ones stands beside a number."
        "Write `limit: gradient`, `limit: aimd` or a number, and `min`, `max`, `initial` only with the first two.";

    // Routes.
    TWO_OF_ONE_NAME = "OR1301" "two of one name"
        "Two routes, faults or rate limits of a service have the same name; counters and commands could not tell them apart."
        "Rename one of them.";
    NEVER_MATCHES = "OR1302" "a route that can never match"
        "The first route that matches is taken, and an earlier one matches everything that this one does."
        "Put the narrower route first, or remove one of them.";
    WEIGHTS_ZERO = "OR1303" "weights that sum to 0"
        "No destination would get a request."
        "Give at least one destination a weight above 0.";
    UNKNOWN_SUBSET = "OR1304" "an unknown subset"
        "The service has no subset of this name."
        "Add it to the `subsets` of that service, or correct the name.";
    UNKNOWN_SERVICE = "OR1305" "an unknown service"
        "The file describes no service of this name."
        "Correct the name; a service of another namespace is written namespace/service.";
    NOWHERE = "OR1306" "a destination that says nothing, or leads back"
        "A destination has neither `service` nor `subset`, or it is the very service that it stands for."
        "Name a service, a subset or both.";
    REGEX = "OR1307" "a regular expression that cannot be used"
        "It does not compile, or it is too large: expressions are matched in linear time, so look-around and back-references do not exist, and their size is bounded."
        "Correct it, make it smaller, or use `prefix`, a path with {} or several matches.";
    NOT_A_MATCH = "OR1308" "a match that can match nothing"
        "A path, host, method, header or gRPC method is not written as requests have it, so that it would never match; or parts contradict each other."
        "Paths begin with / and are normalised; methods are upper case; gRPC methods are package.Service/Method.";
    ACTIONS = "OR1309" "several things at once"
        "A route sends on (`to`, `sticky`, `mirror`, `rewrite`), or redirects, or responds: one of them."
        "Split it into routes with narrower matches.";
    PREFIX_WITHOUT_PREFIX = "OR1310" "a new prefix without an old one"
        "`rewrite.prefix` and `redirect.prefix` stand for what the match's `prefix` matched, and a match of the route has none."
        "Give every match of the route a `prefix`, or use `path`.";
    HEADER_EDIT = "OR1311" "a header that cannot be changed"
        "It is not a header's name or value, or it belongs to the connection (Connection, Transfer-Encoding, …), to the message's framing (Content-Length, Host) or to the mesh (outrigger-*)."
        "Change another one; the host is changed by `rewrite.host`.";
    BAD_ACTION = "OR1312" "an answer or redirect that cannot be sent"
        "The status, path or body is not possible."
        "Redirects have 301, 302, 303, 307 or 308 and change something; bodies have at most 64 KiB; paths begin with /.";
    EMPTY_SUBSET = "OR1313" "a subset without labels"
        "It would be the whole service."
        "Give it at least one label, or leave it out and name the service alone.";
    HASH_WITHOUT_KEY = "OR1314" "a hash of nothing"
        "`ring`, `maglev` and `sticky` need to know what the hash is taken of, and `bound` must be above 100%."
        "Name exactly one of header, cookie, query, path_segment, caller: `balance: {ring: {header: x-user}}`.";
    STICKY_ALONE = "OR1315" "sticky without a choice"
        "`sticky` keeps a value on one of several destinations, and there is only one."
        "List several destinations in `to`, or leave `sticky` out; `balance: {ring: …}` keeps a value on one endpoint.";

    // Faults.
    FAULT_WITHOUT_END = "OR1401" "a fault without an end"
        "A fault that is forgotten is an outage."
        "Set `until` to a moment at most 24 hours ahead.";
    FAULT_TOO_LONG = "OR1402" "a fault that ends too late"
        "`until` is more than 24 hours ahead."
        "Choose a moment within 24 hours, and apply the file again when more is needed.";
    FAULT_NOTHING = "OR1403" "a fault that does nothing, or several things"
        "A fault does one thing: delay, abort (with or without grpc), grpc, reset_after or refuse."
        "Keep one of them; write two faults for two things.";

    // Instances.
    VERSIONS = "OR1501" "versions that cannot be run"
        "`versions` stands in place of `run` and `replicas` of the service, and each version needs a `run` and another set of labels."
        "Move `run` and `replicas` into the versions.";

    INVALID = "OR1901" "a description that sidecars would refuse"
        "The values are fine one by one and impossible together; the message names the field as it is sent to sidecars."
        "Change the field that the message names.";

    // Warnings.
    FAULT_OVER = "OR2001" "a fault that is over"
        "`until` is in the past, so the fault does nothing."
        "Remove it.";
    RETRY_NEVER = "OR2002" "tries that never happen"
        "`retry.attempts` is more than 1 for gRPC or for methods that must not be done twice, and nothing says that they may."
        "Say `idempotent: true` in a route for what may be done twice, or leave `retry` out.";
    NO_PANIC = "OR2003" "all endpoints may be ejected"
        "With `max_ejected: 100%` and `panic: 0%`, a caller that sees every endpoint fail sends nothing for `ejection` (30s): requests are refused as `all_ejected`, or go to `failover`."
        "Keep the defaults unless that is wanted.";
    ZONE_WITHOUT_LABELS = "OR2004" "zones without labels"
        "`zone` prefers endpoints whose label `zone` is the caller's, and this service's instances have none, so it does nothing."
        "Give the instances the label `zone` in `labels` or `versions`.";
    SUBSET_EMPTY = "OR2005" "a subset that no instance is in"
        "`run` starts instances with the labels of the document, and none of them has the labels of this subset."
        "Correct the labels, or add `versions`; ignore it when the instances are started elsewhere.";
}

#[cfg(test)]
mod tests {
    use super::{code, codes};

    #[test]
    fn codes_are_unique_ascending_and_whole() {
        let all = codes();
        assert!(all.windows(2).all(|pair| matches!(pair, [a, b] if a.code < b.code)));
        for one in all {
            assert_eq!(code(&one.code.to_lowercase()), Some(*one));
            assert!(one.cause.ends_with('.') && one.fix.ends_with('.'), "{}", one.code);
        }
    }
}
