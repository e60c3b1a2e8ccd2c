//! How long to wait before another try: full jitter, or what the answer asks for.

use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, HeaderName, RETRY_AFTER};

/// A gRPC server's word on when to try again (gRFC A6).
pub const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What an answer says about another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// Not before.
    After(Duration),
    /// Not at all.
    Never,
}

/// The wait before retry `n`, the first being 0: anything from nothing to `base` doubled `n` times, at most `max`. `chance` is
/// from 0 to 1. Full jitter spreads callers that failed together best (Brooker, "Exponential Backoff And Jitter", 2015).
#[must_use]
pub fn wait(n: u32, base: Duration, max: Duration, chance: f64) -> Duration {
    let doubled = 1u32.checked_shl(n).unwrap_or(u32::MAX);
    base.saturating_mul(doubled).min(max).mul_f64(chance.clamp(0.0, 1.0))
}

/// What an answer's head asks for.
#[must_use]
pub fn asked(headers: &HeaderMap, now: SystemTime) -> Asked {
    if let Some(value) = headers.get(PUSHBACK) {
        // gRFC A6: a value that is negative or no number means that there is to be no retry.
        let millis = value.to_str().ok().and_then(|text| text.trim().parse::<u32>().ok());
        return millis.map_or(Asked::Never, |ms| Asked::After(Duration::from_millis(ms.into())));
    }
    let after = headers.get(RETRY_AFTER).and_then(|v| retry_after(v.as_bytes(), now));
    after.map_or(Asked::Nothing, Asked::After)
}

/// Reads `Retry-After` (RFC 9110 §10.2.3): seconds, or a date in the one form that is sent today (§5.6.7).
#[must_use]
pub fn retry_after(text: &[u8], now: SystemTime) -> Option<Duration> {
    let text = std::str::from_utf8(text).ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let unix = Duration::from_secs(date(text)?);
    let then = SystemTime::UNIX_EPOCH.checked_add(unix)?;
    // A date that has passed asks for nothing.
    Some(then.duration_since(now).unwrap_or_default())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in Unix seconds.
fn date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let mut words = text.split_once(", ")?.1.strip_suffix(" GMT")?.split(' ');
    let day: u64 = words.next()?.parse().ok().filter(|d| (1..=31).contains(d))?;
    let name = words.next()?;
    let month = u64::try_from(MONTHS.iter().position(|m| *m == name)?).ok()? + 1;
    let year: u64 = words.next()?.parse().ok().filter(|y| (1970..10_000).contains(y))?;
    let mut clock = words.next()?.split(':').map(str::parse::<u64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    if hour > 23 || minute > 59 || second > 60 || clock.next().is_some() || words.next().is_some() {
        return None;
    }
    // Days since 1970 by the civil calendar, years that begin in March (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let years = if month <= 2 { year - 1 } else { year };
    let from_march = (month + 9) % 12;
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    let days = years * 365 + years / 4 - years / 100 + years / 400 + day_of_year;
    Some((days.checked_sub(719_468)? * 24 + hour) * 3600 + minute * 60 + second)
}
