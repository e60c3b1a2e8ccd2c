//! `outrigger split`: how the requests to a service are divided among its subsets.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use outrigger_control_plane::config::{self, Edit};
use outrigger_proto::model::{Action, Match, Route};

use crate::exit::Failure;
use crate::revise::{Revise, yaml};

/// Divide the requests to a service among its subsets: edits mesh.yaml and applies it
///
/// For example `outrigger split post v2=5%`: the rest goes to the one subset that is not named. Changes where the route
/// without `match` leads, or adds one called `split`. Shows the edit first; comments and order of the rest stay.
#[derive(Debug, Clone, Args)]
pub(crate) struct SplitArgs {
    /// As `service` or `namespace/service`
    service: String,
    /// Shares of the requests, in whole percent
    #[arg(value_name = "SUBSET=PERCENT", required_unless_present = "clear")]
    shares: Vec<String>,
    /// Take the route called `split` out again
    #[arg(long, conflicts_with = "shares")]
    clear: bool,
    #[command(flatten)]
    revise: Revise,
}

/// The route that is added.
const NAME: &str = "split";

/// Runs `split`.
pub(crate) fn split(args: &SplitArgs) -> anyhow::Result<ExitCode> {
    let mut document = args.revise.read(&args.service)?;
    let list = "routes";
    let traffic = document.service()?.traffic.clone();
    if args.clear {
        if !traffic.routes.iter().any(|route| &*route.name == NAME) {
            let said = format!("{} has no route `{NAME}`", args.service);
            return Err(Failure::NotFound(said).into());
        }
        document.edit(Edit::Remove { list, name: NAME })?;
    } else {
        let subsets: Vec<&str> = traffic.subsets.iter().map(|subset| &*subset.name).collect();
        let to = shares(&args.service, &args.shares, &subsets).map_err(Failure::Usage)?;
        let to: Vec<String> = to
            .iter()
            .map(|(subset, percent)| format!("{{ subset: {}, weight: {percent}% }}", yaml(subset)))
            .collect();
        let value = format!("[{}]", to.join(", "));
        let all = traffic.routes.iter().position(takes_all);
        let before = all.unwrap_or(traffic.routes.len());
        match all.and_then(|i| traffic.routes.get(i)) {
            None => document.edit(Edit::Put {
                list,
                name: NAME,
                entry: &format!("{{ name: {NAME}, to: {value} }}"),
            })?,
            Some(route) if matches!(route.action, Action::Forward(_)) => document.edit(Edit::Set {
                list,
                name: &route.name,
                key: "to",
                value: &value,
            })?,
            Some(route) => {
                let said = format!(
                    "the route `{}` answers all requests itself; nothing is left to divide",
                    route.name
                );
                return Err(Failure::Usage(said).into());
            }
        }
        let first: Vec<String> = traffic
            .routes
            .iter()
            .take(before)
            .map(|route| route.name.to_string())
            .collect();
        if !first.is_empty() {
            let mut err = anstream::stderr();
            writeln!(
                err,
                "note: requests that an earlier route takes go its way: {}",
                first.join(", ")
            )
            .ok();
        }
    }
    super::runtime()?.block_on(args.revise.put(&document))?;
    Ok(ExitCode::SUCCESS)
}

fn takes_all(route: &Route) -> bool {
    route.matches.is_empty() || route.matches.contains(&Match::default())
}

/// The share of each subset, in the order of the document; they sum to 100.
fn shares(service: &str, given: &[String], subsets: &[&str]) -> Result<Vec<(String, u32)>, String> {
    if subsets.is_empty() {
        return Err(format!("{service} has no `subsets` and no `versions` to divide among"));
    }
    let mut shares: Vec<Option<u32>> = vec![None; subsets.len()];
    for text in given {
        let parts = text.split_once('=');
        let percent = parts.and_then(|(_, percent)| percent.strip_suffix('%').unwrap_or(percent).parse().ok());
        let (Some((name, _)), Some(percent @ 0..=100)) = (parts, percent) else {
            return Err(format!("`{text}` is not SUBSET=PERCENT, for example v2=5%"));
        };
        let Some(share) = subsets
            .iter()
            .position(|known| *known == name)
            .and_then(|i| shares.get_mut(i))
        else {
            let near = config::closest(name, subsets.iter().copied());
            let known = near.map_or_else(
                || format!("it has {}", subsets.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            return Err(format!("{service} has no subset `{name}`; {known}"));
        };
        if share.replace(percent).is_some() {
            return Err(format!("`{name}` is named twice"));
        }
    }
    let sum: u32 = shares.iter().flatten().sum();
    let rest: Vec<usize> = (0..shares.len()).filter(|i| shares.get(*i) == Some(&None)).collect();
    match (sum, rest.as_slice()) {
        (101.., _) => return Err(format!("the shares sum to {sum}%")),
        (100, _) => {}
        (_, [only]) => {
            if let Some(share) = shares.get_mut(*only) {
                *share = Some(100 - sum);
            }
        }
        (_, []) => return Err(format!("the shares sum to {sum}%, and no subset is left for the rest")),
        (_, several) => {
            let names: Vec<&str> = several.iter().filter_map(|i| subsets.get(*i).copied()).collect();
            return Err(format!(
                "the shares sum to {sum}%; where does the rest go: {}?",
                names.join(", ")
            ));
        }
    }
    let named = subsets.iter().zip(&shares);
    Ok(named
        .filter_map(|(subset, share)| share.map(|share| ((*subset).to_owned(), share)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[track_caller]
    fn check(given: &str, subsets: &[&str], expected: Result<&str, &str>) {
        let given: Vec<String> = given.split_whitespace().map(Into::into).collect();
        let said = shares("post", &given, subsets);
        let said = said.map(|all| {
            all.iter()
                .map(|(name, share)| format!("{name}={share}"))
                .collect::<Vec<_>>()
                .join(" ")
        });
        match expected {
            Ok(expected) => assert_eq!(said.as_deref(), Ok(expected)),
            Err(part) => assert!(said.as_ref().is_err_and(|said| said.contains(part)), "{said:?}"),
        }
    }

    #[test]
    fn the_rest_goes_to_the_one_that_is_not_named() {
        check("v2=5%", &["v1", "v2"], Ok("v1=95 v2=5"));
        check("v2=5 v1=95", &["v1", "v2"], Ok("v1=95 v2=5"));
        check("v2=100%", &["v1", "v2", "v3"], Ok("v2=100"));
        check("v2=0%", &["v1", "v2"], Ok("v1=100 v2=0"));
        check("v2=5%", &["v1", "v2", "v3"], Err("v1, v3?"));
        check("v2=5%", &["v2"], Err("no subset is left"));
        check("v2=60% v1=60%", &["v1", "v2"], Err("sum to 120%"));
        check("v22=5%", &["v1", "v2"], Err("did you mean v2?"));
        check("v2", &["v1", "v2"], Err("is not SUBSET=PERCENT"));
        check("v2=5% v2=6%", &["v1", "v2"], Err("named twice"));
        check("v2=5%", &[], Err("no `subsets`"));
    }
}
