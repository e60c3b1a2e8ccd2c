//! The page is one that a scraper takes: every family is announced once, every value parses, buckets
//! are cumulative.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::observe::{Direction, StatusClass};

fn page() -> String {
    let stats = Stats::default();
    let key = Key {
        direction: Direction::Outbound,
        service: "default/po\"st".into(),
        port: "http".into(),
    };
    let mut open = Vec::new();
    // Two workers.
    for took in [Duration::from_micros(300), Duration::from_millis(40)] {
        let cell = stats.cell(key.clone());
        open.push(cell.opened());
        cell.request();
        cell.ended(StatusClass::Success, took);
    }
    stats.cell(key).reason(Reason::NoEndpoints);
    stats.set(Gauge::ControlPlaneConnected, 1);
    render(
        &stats,
        &Process {
            rss_bytes: 7,
            ..Process::default()
        },
        true,
    )
}

#[test]
fn the_page_is_well_formed() {
    let page = page();
    let mut families = BTreeSet::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("name and type");
            assert!(families.insert(name.to_owned()), "{name} is announced twice");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            value.parse::<f64>().expect("a number");
            let name = series.split('{').next().expect("a name");
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|s| name.strip_suffix(s))
                .unwrap_or(name);
            assert!(
                families.contains(name) || families.contains(base),
                "{name} is not announced"
            );
        }
    }
}

#[test]
fn workers_add_up_and_labels_are_escaped() {
    let page = page();
    let series = r#"{direction="outbound",service="default/po\"st",port="http""#;
    let has = |line: String| assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    has(format!("outrigger_requests_total{series}}} 2"));
    has(format!("outrigger_connections_open{series}}} 2"));
    has(format!("outrigger_responses_total{series},class=\"success\"}} 2"));
    has(format!("outrigger_reasons_total{series},reason=\"no_endpoints\"}} 1"));
    has(format!(
        "outrigger_request_duration_seconds_bucket{series},le=\"0.000256\"}} 0"
    ));
    has(format!(
        "outrigger_request_duration_seconds_bucket{series},le=\"0.000512\"}} 1"
    ));
    has(format!(
        "outrigger_request_duration_seconds_bucket{series},le=\"+Inf\"}} 2"
    ));
    has(format!("outrigger_request_duration_seconds_sum{series}}} 0.0403"));
    has("outrigger_control_plane_connected 1".into());
    has("process_resident_memory_bytes 7".into());
}
