//! Values that people write as one word: shares, rates, sizes, ways to end. Each parser says what is wrong, for people.

use std::time::{Duration, SystemTime};

use outrigger_proto::model::Outcomes;

use super::check::short;

/// `50%`, `50` → whole percent, at most 100.
pub(super) fn percent(text: &str) -> Result<u32, String> {
    let digits = text.strip_suffix('%').unwrap_or(text).trim_end();
    match digits.parse::<u32>() {
        Ok(n) if digits.starts_with(|c: char| c.is_ascii_digit()) => match n {
            0..=100 => Ok(n),
            _ => Err(format!("`{n}%` is more than 100%")),
        },
        _ => Err(format!("`{}` is not a share in whole percent", short(text))),
    }
}

/// `10%`, `0.5%`, `10` → parts of a million, at most all.
pub(super) fn per_million(text: &str) -> Result<u32, String> {
    let digits = text.strip_suffix('%').unwrap_or(text).trim_end();
    let wrong = || format!("`{}` is not a share in percent, with at most 4 decimals", short(text));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let all = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !all(whole) || !all(part) || part.len() > 4 {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let part: u64 = format!("{part:0<4}").parse().map_err(|_| wrong())?;
    match whole.saturating_mul(10_000).saturating_add(part) {
        n @ 0..=1_000_000 => u32::try_from(n).map_err(|_| wrong()),
        _ => Err(format!("`{}` is more than 100%", short(text))),
    }
}

/// The share as it is written.
pub(super) fn shown_per_million(n: u32) -> String {
    let (whole, part) = (n / 10_000, n % 10_000);
    match part {
        0 => format!("{whole}%"),
        _ => format!("{whole}.{}%", format!("{part:04}").trim_end_matches('0')),
    }
}

/// `100/s`, `600/m`, `5/10s` → a number and the time it holds for.
pub(super) fn rate(text: &str) -> Result<(u64, Duration), String> {
    let wrong = || format!("`{}` is not a number in a time", short(text));
    let (number, time) = text.split_once('/').ok_or_else(wrong)?;
    let number: u64 = number.trim().parse().map_err(|_| wrong())?;
    let time = match time.trim() {
        "s" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        other => humantime::parse_duration(other).map_err(|_| wrong())?,
    };
    if time < Duration::from_millis(1) || time >= DAY {
        return Err(format!("the time of `{}` is not 1ms to a day", short(text)));
    }
    Ok((number, time))
}

/// `512`, `1kb`, `4MiB` → bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{}` is not a size", short(text));
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "kib" => 1 << 10,
        "mb" => 1_000_000,
        "mib" => 1 << 20,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// A moment in UTC.
pub(super) fn moment(text: &str) -> Result<SystemTime, String> {
    humantime::parse_rfc3339_weak(text).map_err(|_| format!("`{}` is not a moment in UTC", short(text)))
}

/// Adds a way to end: `503`, `5xx`, `UNAVAILABLE`, `timeout`, `reset`, `connect`.
pub(super) fn outcome(set: &mut Outcomes, word: &str) -> Result<(), String> {
    match word {
        "timeout" => set.timeout = true,
        "reset" => set.reset = true,
        "connect" => set.connect = true,
        "1xx" | "2xx" | "3xx" => return Err(format!("`{word}` is no way to fail")),
        "4xx" => (400..500).for_each(|status| set.add_status(status)),
        "5xx" => (500..600).for_each(|status| set.add_status(status)),
        _ => match (word.parse::<u16>(), grpc_code(word)) {
            (Ok(status @ 400..=599), _) => set.add_status(status),
            (Ok(status), _) => return Err(format!("`{status}` is not an HTTP status from 400 to 599")),
            (_, Some(0)) => return Err("`OK` is no way to fail".to_owned()),
            (_, Some(code)) => set.add_grpc(code),
            _ => return Err(format!("`{}` is no way to end", short(word))),
        },
    }
    Ok(())
}

/// The words of a set, as they are written.
pub(super) fn shown_outcomes(set: &Outcomes) -> String {
    let mut words: Vec<String> = Vec::new();
    for (class, word) in [(400_u16..500, "4xx"), (500..600, "5xx")] {
        if class.clone().all(|status| set.has_status(status)) {
            words.push(word.to_owned());
        } else {
            words.extend(set.statuses().filter(|s| class.contains(s)).map(|s| s.to_string()));
        }
    }
    words.extend(
        set.grpc()
            .filter_map(|code| Some((*GRPC.get(code as usize)?).to_owned())),
    );
    for (given, word) in [(set.timeout, "timeout"), (set.reset, "reset"), (set.connect, "connect")] {
        if given {
            words.push(word.to_owned());
        }
    }
    if words.is_empty() {
        "nothing".to_owned()
    } else {
        words.join(", ")
    }
}

/// Every word that [`outcome`] knows, for "did you mean".
pub(super) fn outcome_words() -> impl Iterator<Item = &'static str> {
    ["5xx", "4xx", "timeout", "reset", "connect"]
        .into_iter()
        .chain(GRPC.iter().skip(1).copied())
}

/// The number of a gRPC code's name.
pub(super) fn grpc_code(name: &str) -> Option<u32> {
    let at = GRPC.iter().position(|known| *known == name)?;
    u32::try_from(at).ok()
}

/// The name of a gRPC code.
pub(super) fn grpc_name(code: u32) -> &'static str {
    GRPC.get(code as usize).copied().unwrap_or("UNKNOWN")
}

/// The gRPC code that stands for an HTTP status (gRPC, "HTTP to gRPC Status Code Mapping").
pub(super) fn grpc_of(status: u16) -> u32 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The HTTP status that stands for a gRPC code (google.rpc.Code).
pub(super) fn status_of(grpc: u32) -> u16 {
    match grpc {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// The names of gRPC's codes, by number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Longer durations are not for the wire.
pub(super) const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        assert_eq!(percent("50%"), Ok(50));
        assert_eq!(percent("0"), Ok(0));
        assert_eq!(per_million("0.5%"), Ok(5_000));
        assert_eq!(per_million("0.0001"), Ok(1));
        assert_eq!(per_million("100%"), Ok(1_000_000));
        for wrong in ["101%", "-1", "+5", "a", "", "%", "1.5"] {
            percent(wrong).unwrap_err();
        }
        for wrong in [
            "100.0001%",
            "-1",
            "+5",
            ".",
            "1.",
            ".5",
            "0.00001",
            "99999999999999999999",
        ] {
            per_million(wrong).unwrap_err();
        }
        for n in [0, 1, 5_000, 50_000, 123_456, 1_000_000] {
            assert_eq!(per_million(&shown_per_million(n)), Ok(n));
        }
    }

    #[test]
    fn rates_and_sizes() {
        assert_eq!(rate("100/s"), Ok((100, Duration::from_secs(1))));
        assert_eq!(rate("5/10s"), Ok((5, Duration::from_secs(10))));
        for wrong in ["100", "x/s", "5/", "5/x", "5/0s", "5/30h", "-1/s"] {
            rate(wrong).unwrap_err();
        }
        assert_eq!(bytes("1kb"), Ok(1000));
        assert_eq!(bytes("2 KiB"), Ok(2048));
        for wrong in ["", "kb", "1gb", "-1", "99999999999999999999", "18446744073709551615mb"] {
            bytes(wrong).unwrap_err();
        }
    }

    #[test]
    fn ways_to_end_are_read_and_shown() {
        let mut set = Outcomes::default();
        for word in ["5xx", "404", "UNAVAILABLE", "timeout"] {
            outcome(&mut set, word).unwrap();
        }
        assert_eq!(shown_outcomes(&set), "404, 5xx, UNAVAILABLE, timeout");
        for wrong in ["200", "2xx", "600", "OK", "unavailable", "6xx", ""] {
            outcome(&mut set, wrong).unwrap_err();
        }
        for code in 0..17 {
            assert_eq!(grpc_code(grpc_name(code)), Some(code));
        }
    }
}
