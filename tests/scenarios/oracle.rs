//! Envoy as an oracle: the same routes given to a real Envoy and to a sidecar, the same requests, the same apps. What
//! the caller gets, how often which app was asked, what was mirrored and who was ejected is compared; [`EXPLAINED`] lists
//! where they differ and why, and a difference that is not in it, or one in it that is none any more, fails. Under
//! mutual TLS the sidecar's apps have sidecars too; Envoy's have none: nothing else is to be seen of that.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use libtest_mimic::Trial;
use outrigger_proto::wire::mesh as wire;
use outrigger_tests::apps::h1::{self, Fixed, H1App};
use outrigger_tests::client::{Client, get, once};
use outrigger_tests::mesh::{Mesh, Plan};
use outrigger_tests::process::{Process, accepts};
use outrigger_tests::tools::tool;
use outrigger_tests::{World, over_both, ports, wait};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

pub(crate) fn tests() -> Vec<Trial> {
    over_both![it_does_what_envoy_does_or_we_say_why, it_splits_as_envoy_does]
}

/// (request, Envoy, Outrigger, why they differ)
const EXPLAINED: &[(&str, &str, &str, &str)] = &[
    (
        "GET /moved/a",
        "301 -> http://h/there",
        "301 -> /there",
        "a relative reference (RFC 9110 §10.2.2) holds whatever scheme and host the client came by",
    ),
    (
        "POST /retry/503",
        "503 flaky /retry/503, tries: flaky 3",
        "503 flaky /retry/503, tries: flaky 1",
        "Envoy sends again whatever its policy names; we send what may have been processed again only when its method or \
         the service says that this does no harm",
    ),
    (
        "GET /retry/reset",
        "503, tries: flaky 3",
        "502, tries: flaky 3",
        "503 says that nothing was done; after a connection that broke nobody knows, which is what 502 says",
    ),
    (
        "POST /retry/reset",
        "503, tries: flaky 3",
        "502, tries: flaky 1",
        "both of the above",
    ),
];

/// One request line each, with further fields after it.
const ASKED: &[&str] = &[
    "GET /",
    "GET /exact",
    "GET /exact/more",
    "GET /exact?query=1",
    "GET /old",
    "GET /old/path?query=1",
    "GET /older",
    "GET /moved/a",
    "GET /teapot",
    "GET /canary x-canary: yes",
    "GET /canary x-canary: yess",
    "GET /status/404",
    "GET /status/500",
    "GET /status/503",
    "GET /mirror/1",
    "POST /mirror/2",
    "GET /retry/200",
    "GET /retry/404",
    "GET /retry/500",
    "GET /retry/503",
    "POST /retry/503",
    "GET /retry/reset",
    "POST /retry/reset",
    "GET /late",
    "GET /nobody",
];

/// Answers its name and the path that it saw, or the status that the path names, or not at all.
fn app(name: &'static str) -> impl Fn(h1::Request) -> Fixed + Clone + Send + Sync + 'static {
    move |mut request| {
        Box::pin(async move {
            let target = request.head.word(1).to_owned();
            match target.rsplit('/').next().unwrap_or_default() {
                "late" => return h1::silent(request).await,
                "reset" => return h1::execute_then_reset(request).await,
                _ => {}
            }
            outrigger_tests::http1::read_request_body(&mut request.io, &request.head).await?;
            let last = target.rsplit('/').next().unwrap_or_default();
            let status: u16 = last.parse().ok().filter(|n| *n >= 200).unwrap_or(200);
            let text = format!("{name} {target}");
            let answer = format!(
                "HTTP/1.1 {status} As Told\r\nX-App: {name}\r\nContent-Length: {}\r\n\r\n{text}",
                text.len()
            );
            request.io.write_all(answer.as_bytes()).await?;
            Ok(Some(request.io))
        })
    }
}

const FAILS: &str = "HTTP/1.1 503 Always\r\nContent-Length: 0\r\n\r\n";

/// The apps behind a proxy; each proxy has its own.
struct Apps {
    main: H1App,
    other: H1App,
    flaky: [H1App; 2],
    copy: H1App,
    /// The first always fails.
    pair: [H1App; 2],
    /// Accepts nobody.
    nobody: SocketAddr,
}

impl Apps {
    async fn start() -> Result<Self> {
        Ok(Self {
            main: H1App::start(app("main")).await?,
            other: H1App::start(app("other")).await?,
            flaky: [H1App::start(app("flaky")).await?, H1App::start(app("flaky")).await?],
            copy: H1App::start(app("copy")).await?,
            pair: [H1App::start(h1::fixed(FAILS)).await?, H1App::start(app("pair")).await?],
            nobody: ports::free()?,
        })
    }

    fn asked(&self) -> [(&'static str, usize); 4] {
        let flaky = self.flaky[0].seen.requests() + self.flaky[1].seen.requests();
        [
            ("main", self.main.seen.requests()),
            ("other", self.other.seen.requests()),
            ("flaky", flaky),
            ("copy", self.copy.seen.requests()),
        ]
    }
}

async fn it_does_what_envoy_does_or_we_say_why(world: Arc<World>) -> Result<()> {
    let (theirs, ours) = (Apps::start().await?, Apps::start().await?);
    let (_envoy, envoy) = envoy(&world, &theirs).await?;
    let mut mesh = outrigger(&world, &ours).await?;
    let mut differences = Vec::new();
    for request in ASKED {
        let (one, two) = (
            asked(envoy, &theirs, request).await?,
            asked(mesh.to("main")?, &ours, request).await?,
        );
        let explained = EXPLAINED.iter().find(|(of, ..)| of == request);
        let expected = match explained {
            Some((_, one, two, _)) => ((*one).to_owned(), (*two).to_owned()),
            None => (one.clone(), one.clone()),
        };
        if (one.clone(), two.clone()) != expected {
            differences.push(format!(
                "{request}: Envoy {one:?}, Outrigger {two:?}, explained {explained:?}"
            ));
        }
    }
    ensure!(differences.is_empty(), "\n{}", differences.join("\n"));
    // Who fails five times in a row is asked no more.
    for (to, apps) in [(envoy, &theirs), (mesh.to("main")?, &ours)] {
        ejects(to, apps).await?;
    }
    mesh.check_well()
}

/// Of 10,000, how many go where by the route `/split`.
const WEIGHTS: [(&str, u32); 3] = [("other", 7_000), ("flaky", 2_500), ("copy", 500)];

async fn it_splits_as_envoy_does(world: Arc<World>) -> Result<()> {
    const REQUESTS: u32 = 2_000;
    let (theirs, ours) = (Apps::start().await?, Apps::start().await?);
    let (_envoy, envoy) = envoy(&world, &theirs).await?;
    let mut mesh = outrigger(&world, &ours).await?;
    for (who, to, apps) in [("Envoy", envoy, &theirs), ("Outrigger", mesh.to("main")?, &ours)] {
        let before = apps.asked();
        let mut client = Client::connect(to).await?;
        for _ in 0..REQUESTS {
            let answer = client.exchange("GET /split HTTP/1.1\r\nHost: h\r\n\r\n").await?;
            ensure!(answer.status() == 200, "{who}: {answer:?}");
        }
        let after = apps.asked();
        let mut sum = 0;
        for (name, weight) in WEIGHTS {
            let of = |asked: &[(&str, usize)]| asked.iter().find(|(n, _)| *n == name).map_or(0, |(_, n)| *n);
            let got = of(&after) - of(&before);
            sum += got;
            let (n, p) = (f64::from(REQUESTS), f64::from(weight) / 10_000.0);
            // Seven standard deviations of a binomial distribution: by chance once in 10^11 runs.
            let (wanted, bound) = (n * p, 7.0 * (n * p * (1.0 - p)).sqrt());
            let off = (f64::from(u32::try_from(got)?) - wanted).abs();
            ensure!(off <= bound, "{who}: {got} of {n} to {name}, not {wanted} ± {bound:.0}");
        }
        // One try each, and nobody else was asked.
        ensure!(sum == usize::try_from(REQUESTS)?, "{who}: {before:?}, then {after:?}");
    }
    mesh.check_well()
}

/// What the caller got, and how often which app was asked.
async fn asked(to: SocketAddr, apps: &Apps, request: &str) -> Result<String> {
    let mut words = request.splitn(3, ' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let field = words.next().map(|f| format!("{f}\r\n")).unwrap_or_default();
    let before = apps.asked();
    let body = if method == "POST" { "Content-Length: 3\r\n" } else { "" };
    let content = if method == "POST" { "one" } else { "" };
    let answer = once(
        to,
        &format!("{method} {path} HTTP/1.1\r\nHost: h\r\n{field}{body}Connection: close\r\n\r\n{content}"),
    )
    .await
    .with_context(|| request.to_owned())?;
    if path.starts_with("/mirror") {
        // The copy is nobody's concern who asks, so it may come later.
        let copied = apps.copy.seen.requests();
        let wanted = before[3].1 + 1;
        wait::until("it is mirrored", || async { apps.copy.seen.requests() >= wanted }).await?;
        ensure!(copied <= wanted, "mirrored twice");
    }
    let mut text = answer.status().to_string();
    if answer.head.field("x-app").is_some() || path == "/teapot" {
        text = format!("{text} {}", answer.text());
    }
    if let Some(location) = answer.head.field("location") {
        text = format!("{text} -> {location}");
    }
    let tries: Vec<String> = before
        .iter()
        .zip(apps.asked())
        .filter(|((_, before), (_, after))| after > before)
        .map(|((name, before), (_, after))| format!("{name} {}", after - before))
        .collect();
    if !tries.is_empty() {
        text = format!("{text}, tries: {}", tries.join(" "));
    }
    Ok(text)
}

/// Asks the pair of which one fails, until that one is asked no more.
async fn ejects(to: SocketAddr, apps: &Apps) -> Result<()> {
    let [bad, good] = &apps.pair;
    let begin = bad.seen.requests();
    wait::until("the one that fails is asked no more", || async {
        let (before, well) = (bad.seen.requests(), good.seen.requests());
        for _ in 0..6 {
            if get(to, "/pair").await.is_err() {
                return false;
            }
        }
        bad.seen.requests() == before && good.seen.requests() == well + 6
    })
    .await?;
    let failed = bad.seen.requests() - begin;
    // Envoy's worker hears of it from its main thread, a request or two later.
    ensure!(
        (5..=12).contains(&failed),
        "{failed} requests failed before it was ejected"
    );
    Ok(())
}

async fn outrigger(world: &World, apps: &Apps) -> Result<Mesh> {
    let to = |service: &str| json!([{"to": {"service": format!("default/{service}")}, "weight": 1}]);
    let route =
        |name: &str, matches: Value, action: Value| json!({"name": name, "matches": [matches], "action": action});
    let mut retry = route(
        "retry",
        json!({"path": {"prefix": "/retry"}}),
        json!({"forward": {"to": to("flaky")}}),
    );
    retry["policy"] = json!({"retry": {"attempts": 3, "backoff_ms": 1}});
    let mut late = route("late", json!({"path": {"exact": "/late"}}), json!({"forward": {}}));
    late["policy"] = json!({"timeout_ms": 700});
    let routes = json!([
        route(
            "exact",
            json!({"path": {"exact": "/exact"}}),
            json!({"forward": {"to": to("other")}})
        ),
        route(
            "old",
            json!({"path": {"prefix": "/old"}}),
            json!({"forward": {"rewrite": {"path": {"prefix": "/new"}}}})
        ),
        route(
            "moved",
            json!({"path": {"prefix": "/moved"}}),
            json!({"redirect": {"status": 301, "path": {"full": "/there"}}})
        ),
        route(
            "teapot",
            json!({"path": {"exact": "/teapot"}}),
            json!({"respond": {"status": 418, "body": "short and stout"}})
        ),
        route(
            "canary",
            json!({"headers": [{"name": "x-canary", "value": {"exact": "yes"}}]}),
            json!({"forward": {"to": to("other")}})
        ),
        route(
            "mirror",
            json!({"path": {"prefix": "/mirror"}}),
            json!({"forward": {"mirror": {"to": {"service": "default/copy"}, "per_million": 1_000_000}}})
        ),
        retry,
        late,
        route(
            "pair",
            json!({"path": {"exact": "/pair"}}),
            json!({"forward": {"to": to("pair")}})
        ),
        route(
            "split",
            json!({"path": {"exact": "/split"}}),
            json!({"forward": {"to": WEIGHTS
                .map(|(name, weight)| json!({"to": {"service": format!("default/{name}")}, "weight": weight}))}})
        ),
        route(
            "nobody",
            json!({"path": {"exact": "/nobody"}}),
            json!({"forward": {"to": to("nobody")}})
        ),
    ]);
    let off = |service: &mut wire::Service| {
        service.outlier = Some(wire::Outlier {
            off: true,
            ..wire::Outlier::default()
        });
        // A handshake may take long on a busy machine.
        service.connect_timeout_ms = 30_000;
        service.balance = wire::Balance::RoundRobin as i32;
        // The storm of one test is not what the budget is about.
        service.retry_budget = Some(wire::RetryBudget {
            percent: 100,
            min_per_second: 100,
        });
    };
    let plan = |plan: Plan, name: &str, addrs: &[SocketAddr]| match world.authority() {
        Some(_) => plan.service(name, "http", addrs),
        None => plan.bare_service(name, "http", addrs),
    };
    let mut mesh = plan(Plan::default(), "main", &[apps.main.addr])
        .policy(off)
        .policy(move |service| service.routes = serde_json::from_value(routes).expect("routes"));
    for (name, addrs) in [
        ("other", &[apps.other.addr][..]),
        ("flaky", &apps.flaky.each_ref().map(|a| a.addr)),
        ("copy", &[apps.copy.addr]),
        ("nobody", &[apps.nobody]),
    ] {
        mesh = plan(mesh, name, addrs).policy(off);
    }
    plan(mesh, "pair", &apps.pair.each_ref().map(|a| a.addr))
        .policy(|service| {
            service.connect_timeout_ms = 30_000;
            service.balance = wire::Balance::RoundRobin as i32;
        })
        // As Envoy: who has connected once is connected.
        .workers(1)
        .start(world)
        .await
}

async fn envoy(world: &World, apps: &Apps) -> Result<(Process, SocketAddr)> {
    let listen = ports::free()?;
    let at =
        |addr: SocketAddr| json!({"address": {"socket_address": {"address": addr.ip(), "port_value": addr.port()}}});
    let cluster = |name: &str, addrs: &[SocketAddr]| {
        let endpoints: Vec<Value> = addrs.iter().map(|a| json!({"endpoint": at(*a)})).collect();
        json!({"name": name, "type": "STATIC", "connect_timeout": "1s", "lb_policy": "ROUND_ROBIN",
               "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}})
    };
    let retry = json!({"retry_on": "gateway-error,reset,connect-failure", "num_retries": 2,
                       "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.01s"}});
    let routes = json!([
        {"match": {"path": "/exact"}, "route": {"cluster": "other"}},
        {"match": {"path_separated_prefix": "/old"}, "route": {"cluster": "main", "prefix_rewrite": "/new"}},
        {"match": {"path_separated_prefix": "/moved"}, "redirect": {"path_redirect": "/there"}},
        {"match": {"path": "/teapot"}, "direct_response": {"status": 418, "body": {"inline_string": "short and stout"}}},
        {"match": {"prefix": "/", "headers": [{"name": "x-canary", "string_match": {"exact": "yes"}}]},
         "route": {"cluster": "other"}},
        {"match": {"path_separated_prefix": "/mirror"},
         "route": {"cluster": "main", "request_mirror_policies": [{"cluster": "copy"}]}},
        {"match": {"path_separated_prefix": "/retry"}, "route": {"cluster": "flaky", "retry_policy": retry}},
        {"match": {"path": "/late"}, "route": {"cluster": "main", "timeout": "0.7s"}},
        {"match": {"path": "/pair"}, "route": {"cluster": "pair"}},
        {"match": {"path": "/split"}, "route": {"weighted_clusters": {"clusters":
            WEIGHTS.map(|(name, weight)| json!({"name": name, "weight": weight}))}}},
        {"match": {"path": "/nobody"}, "route": {"cluster": "nobody"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "main"}},
    ]);
    let router = json!({"name": "envoy.filters.http.router", "typed_config":
        {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}});
    let manager = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "oracle", "http_filters": [router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]}}});
    let mut pair = cluster("pair", &apps.pair.each_ref().map(|a| a.addr));
    pair["outlier_detection"] =
        json!({"consecutive_5xx": 5, "interval": "1s", "base_ejection_time": "300s", "max_ejection_percent": 50});
    let clusters = json!([
        pair,
        cluster("main", &[apps.main.addr]),
        cluster("other", &[apps.other.addr]),
        cluster("flaky", &apps.flaky.each_ref().map(|a| a.addr)),
        cluster("copy", &[apps.copy.addr]),
        cluster("nobody", &[apps.nobody]),
    ]);
    let config = json!({"static_resources": {
        "listeners": [{"name": "oracle", "address": at(listen)["address"], "filter_chains": [{"filters": [manager]}]}],
        "clusters": clusters}});
    let file = world.write("envoy.json", &config.to_string())?;
    let mut command = tool("envoy")?;
    command
        .arg("-c")
        .arg(file)
        .args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]);
    let process = world.spawn("envoy", command)?;
    accepts(listen).await?;
    Ok((process, listen))
}
