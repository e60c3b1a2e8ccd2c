//! Who gets a certificate, and the many who do not.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use super::super::queue::Queue;
use super::*;

const POST: &str = "default/post";

#[test]
fn a_workload_joins_once_and_renews_for_ever() {
    let authority = open(NOW, None);
    let mut post = Workload::new(POST, "p1");
    let text = token(&authority, NOW, POST, 1);
    post.join(&authority, NOW, &text).expect("joins");
    for i in 1..40 {
        let before = post.serial.clone();
        post.renew(&authority, NOW + i * LIFE / 2).expect("renews");
        assert_ne!(post.serial, before);
    }
    let certs = authority.certs(NOW + 20 * LIFE, &Alone);
    assert_eq!(
        (certs.certs.len(), certs.certs[0].renewals, &certs.certs[0].serial),
        (1, 39, &post.serial)
    );
    assert_eq!(certs.certs[0].id, "spiffe://outrigger.local/ns/default/svc/post");
}

#[test]
fn a_token_is_good_for_its_service_its_time_and_its_uses() {
    let authority = open(NOW, None);
    let join =
        |service: &str, instance: &str, token: &str, now| Workload::new(service, instance).join(&authority, now, token);
    let once = token(&authority, NOW, POST, 1);
    refused(
        join("default/user", "u1", &once, NOW),
        "the token is for default/post, not for default/user",
    );
    refused(join("other/post", "u1", &once, NOW), "the token is for default/post");
    refused(join(POST, "p1", &once, NOW + 600), "the control plane's clock says");
    join(POST, "p1", &once, NOW + 599).expect("joins");
    refused(join(POST, "p2", &once, NOW + 1), "used as often");
    let twice = token(&authority, NOW, POST, 2);
    join(POST, "p3", &twice, NOW).expect("joins");
    join(POST, "p4", &twice, NOW).expect("joins");
    refused(join(POST, "p5", &twice, NOW), "used as often");
    let always = token(&authority, NOW, POST, 0);
    for i in 0..30 {
        join(POST, &format!("a{i}"), &always, NOW).expect("joins");
    }
    let id = always.split('.').nth(1).expect("an id");
    authority.revoke_token(id).expect("revokes");
    refused(join(POST, "p6", &always, NOW), "is not known");
    refused(authority.revoke_token(id), "no token has the id");
}

#[test]
fn garbage_and_guesses_are_no_tokens() {
    let authority = open(NOW, None);
    let text = token(&authority, NOW, POST, 1);
    let mut parts: Vec<String> = text.split('.').map(str::to_owned).collect();
    let other = token(&open(NOW, None), NOW, POST, 1);
    parts[2] = other.split('.').nth(2).expect("a secret").to_owned();
    let operator = authority
        .create_token(NOW, &Purpose::Operator, 1, 600)
        .expect("a token")
        .to_string();
    for (guess, why) in [
        ("", "not a token"),
        ("garbage", "not a token"),
        ("ogt1.zzzzzzzzzzzz.AAAA.AAAA", "not 12"),
        (text.strip_suffix(|_| true).expect("not empty"), "cut short"),
        (&parts.join("."), "is not known"),
        (&other, "is not known"),
        (&operator, "no workload joins by it"),
    ] {
        refused(Workload::new(POST, "p1").join(&authority, NOW, guess), why);
    }
    Workload::new(POST, "p1")
        .join(&authority, NOW, &text)
        .expect("the right one is still good");
}

#[test]
fn a_lost_answer_costs_nobody_the_token_but_the_one_who_spent_it() {
    let authority = open(NOW, None);
    let text = token(&authority, NOW, POST, 1);
    let mut post = Workload::new(POST, "p1");
    post.join(&authority, NOW, &text).expect("joins");
    post.join(&authority, NOW, &text).expect("asks again with the same key");
    refused(Workload::new(POST, "p1").join(&authority, NOW, &text), "used as often");
    assert_eq!(authority.tokens(NOW)[0].used, 1);
}

#[test]
fn nobody_gets_the_name_of_another() {
    let authority = open(NOW, None);
    let post = joined(&authority, NOW, POST, "p1");
    let user = joined(&authority, NOW, "default/user", "u1");
    let issue = |asker: &Asker, request: &IssueRequest| authority.issue(NOW, asker, request);
    // By the connection's certificate.
    refused(
        issue(&user.asker(), &post.request(None)),
        "the connection's certificate is of",
    );
    let mut other_domain = post.request(None);
    other_domain.instance = "p2".into();
    refused(issue(&post.asker(), &other_domain), "is not of default/post/p2");
    let foreign = Asker::Workload {
        id: "spiffe://elsewhere/ns/default/svc/post".parse().expect("an id"),
        serial: post.serial.clone(),
    };
    refused(
        issue(&foreign, &post.request(None)),
        "the connection's certificate is of",
    );
    // By names in the request for the certificate.
    for name in [
        "spiffe://outrigger.local/ns/default/svc/user",
        "https://example.org",
        "",
    ] {
        let mut request = post.request(None);
        request.csr = post.csr(&[name]);
        refused(
            issue(&post.asker(), &request),
            "what is granted is spiffe://outrigger.local/ns/default/svc/post",
        );
    }
    let mut request = post.request(None);
    request.csr = post.csr(&["spiffe://outrigger.local/ns/default/svc/post"]);
    issue(&post.asker(), &request).expect("its own name");
    // Without any proof, and by names that are none.
    refused(issue(&Asker::Nobody, &post.request(None)), "neither a token nor");
    refused(issue(&Asker::Operator, &post.request(None)), "POST /v1/certs/operator");
    for (service, instance) in [
        ("default/post", "../u1"),
        ("post", "p1"),
        ("", ""),
        ("default/post/x", "p1"),
    ] {
        let mut request = post.request(None);
        (request.service, request.instance) = (service.into(), instance.into());
        assert!(issue(&post.asker(), &request).is_err(), "{service} {instance}");
    }
    // The mesh's own names.
    let purpose = Purpose::Join(service("outrigger/control-plane"));
    refused(authority.create_token(NOW, &purpose, 1, 60), "the mesh's own");
    refused(
        authority.operator_cert(NOW, &post.csr(&[]), Some(&service("outrigger/control-plane"))),
        "own",
    );
}

#[test]
fn a_sleeper_renews_late_by_its_newest_leaf_for_seven_days() {
    let authority = open(NOW, None);
    let mut post = joined(&authority, NOW, POST, "p1");
    let first = post.leaf.clone();
    let end = NOW + LIFE;
    refused(
        authority.issue(end + 1, &post.asker(), &post.request(None)),
        "the control plane's clock says",
    );
    refused(post.renew_late(&authority, end + 7 * 86_400 + 1), "more than 7 days");
    post.renew_late(&authority, end + 7 * 86_400).expect("renews late");
    let now = end + 7 * 86_400 + LIFE + 1;
    // The answer may have been lost while it slept, so its leaf before is good until it shows the newest.
    let lost = (post.leaf.clone(), std::mem::replace(&mut post.leaf, first));
    refused(post.renew_late(&authority, now), "more than 7 days");
    (post.leaf, _) = lost;
    let before = post.leaf.clone();
    post.renew_late(&authority, now).expect("renews");
    let newest = (post.leaf.clone(), post.serial.clone());
    post.leaf = before.clone();
    post.renew_late(&authority, now + 1).expect("the answer was lost");
    authority.shown(&post.serial).expect("stores");
    post.leaf = before;
    refused(post.renew_late(&authority, now + 2), "not one that is known");
    post.leaf = newest.0;
    refused(post.renew_late(&authority, now + 3), "not the newest");
}

#[test]
fn a_late_renewal_proves_the_key_of_a_leaf_of_ours() {
    let authority = open(NOW, None);
    let post = joined(&authority, NOW, POST, "p1");
    let late = |change: &dyn Fn(&mut LateRenewal)| {
        let mut request = post.late();
        if let Some(Proof::Late(late)) = &mut request.proof {
            change(late);
        }
        authority.issue(NOW + LIFE + 1, &Asker::Nobody, &request)
    };
    late(&|_| {}).expect("its own");
    refused(late(&|l| l.signature[10] ^= 1), "not signed by the certificate's key");
    refused(late(&|l| l.signature.clear()), "not signed");
    refused(late(&|l| l.leaf = b"garbage".to_vec()), "not one that is known");
    refused(late(&|l| l.leaf.push(0)), "not one that is known");
    let other = joined(&open(NOW, None), NOW, POST, "p1");
    refused(late(&|l| l.leaf = other.leaf.clone()), "not one that is known");
    // A signature for another request, and a leaf of somebody else of the same mesh.
    let mut request = post.late();
    request.csr = Workload::new(POST, "p1").csr(&[]);
    refused(authority.issue(NOW, &Asker::Nobody, &request), "not signed by");
    let user = joined(&authority, NOW, "default/user", "u1");
    let mut request = user.late();
    (request.service, request.instance) = (POST.into(), "p1".into());
    refused(
        authority.issue(NOW, &Asker::Nobody, &request),
        "is not of default/post/p1",
    );
}

#[test]
fn revoked_is_revoked_until_allowed() {
    let authority = open(NOW, None);
    let changes = authority.changes();
    let mut post = joined(&authority, NOW, POST, "p1");
    let mut second = joined(&authority, NOW, POST, "p2");
    let old = by_serial(&post);
    post.renew(&authority, NOW + 1).expect("renews");
    assert!(
        !changes.has_changed().expect("open"),
        "issuance changes nothing for others"
    );
    // By an older leaf: the newest is revoked with it.
    assert!(authority.revoke(NOW + 2, &old).expect("revokes"));
    assert!(changes.has_changed().expect("open"));
    assert_eq!(authority.bundle().revoked.len(), 2);
    refused(post.renew(&authority, NOW + 3), "is revoked");
    refused(post.renew_late(&authority, NOW + 3), "is revoked");
    let again = token(&authority, NOW + 3, POST, 1);
    refused(
        Workload::new(POST, "p1").join(&authority, NOW + 3, &again),
        "is revoked",
    );
    let id = SpiffeId::new(TRUST_DOMAIN, &service(POST)).expect("an id");
    refused(authority.admits(&id, &post.serial), "is revoked");
    authority.admits(&id, &second.serial).expect("another instance");
    second.renew(&authority, NOW + 3).expect("another instance");
    // Its leaves are over, so nobody has to know; it gets none all the same.
    authority.tick(NOW + 2 * LIFE, &Alone);
    assert_eq!(authority.bundle().revoked, []);
    refused(post.renew_late(&authority, NOW + 2 * LIFE), "is revoked");
    authority.allow(&by_serial(&post)).expect("allows");
    post.renew_late(&authority, NOW + 2 * LIFE).expect("renews late");
    refused(authority.allow(&by_serial(&post)), "is not revoked");
    // A whole service, for as long as it takes.
    authority.revoke(NOW, &by_service(POST)).expect("revokes");
    authority.tick(NOW + 10 * LIFE, &Alone);
    assert_eq!(authority.bundle().revoked, [by_service(POST)]);
    let now = NOW + 2 * LIFE + 10;
    refused(post.renew(&authority, now), "default/post is revoked");
    refused(second.renew_late(&authority, now), "default/post is revoked");
    refused(
        Workload::new(POST, "p9").join(&authority, now, &token(&authority, now, POST, 1)),
        "is revoked",
    );
    refused(
        authority.operator_cert(now, &post.csr(&[]), Some(&service(POST))),
        "is revoked",
    );
    refused(authority.admits(&id, "00"), "default/post is revoked");
    joined(&authority, now, "default/user", "u1");
    authority.allow(&by_service(POST)).expect("allows");
    post.renew(&authority, now).expect("renews");
    refused(
        authority.revoke(now, &by_service("outrigger/control-plane")),
        "does not revoke itself",
    );
    refused(authority.revoke(now, &Revocation::Serial("xyz".into())), "hexadecimal");
    assert!(
        !authority
            .revoke(now, &Revocation::Serial("4242".into()))
            .expect("revokes"),
        "unknown"
    );
}

#[test]
fn one_workload_cannot_have_all_the_certificates() {
    let authority = open(NOW, None);
    let mut post = joined(&authority, NOW, POST, "p1");
    for _ in 0..9 {
        post.renew(&authority, NOW).expect("within the burst");
    }
    refused(post.renew(&authority, NOW), "again in 6 s");
    // Strangers do not spend its budget, and others have their own.
    let mut user = joined(&authority, NOW, "default/user", "u1");
    for _ in 0..20 {
        refused(authority.issue(NOW, &Asker::Nobody, &user.request(None)), "neither");
    }
    user.renew(&authority, NOW).expect("renews");
    post.renew(&authority, NOW + 6).expect("renews");
}

#[test]
fn an_operator_has_a_token_and_short_certificates() {
    let authority = open(NOW, None);
    let text = authority
        .create_token(NOW, &Purpose::Operator, 1, 600)
        .expect("a token")
        .to_string();
    assert!(authority.is_operator(NOW, &text) && authority.is_operator(NOW + 599, &text));
    assert!(!authority.is_operator(NOW + 600, &text));
    assert!(!authority.is_operator(NOW, &token(&authority, NOW, POST, 1)) && !authority.is_operator(NOW, ""));
    let mut person = Workload::new("outrigger/operator", "x");
    let granted = authority
        .operator_cert(NOW, &person.csr(&[]), None)
        .expect("a certificate");
    assert!(granted.not_after <= NOW + 3600);
    let as_post = authority
        .operator_cert(NOW, &person.csr(&[]), Some(&service(POST)))
        .expect("a certificate");
    let certs = authority.certs(NOW, &Alone).certs;
    let found = certs.iter().find(|c| c.serial == as_post.serial).expect("listed");
    assert!(found.service == POST && found.token.is_none());
    // It is not renewed, under whatever name.
    (person.serial, person.leaf) = (granted.serial, granted.chain[0].clone());
    refused(person.renew(&authority, NOW), "the mesh's own");
    (person.service, person.instance) = (POST.into(), found.instance.clone());
    person.serial = as_post.serial;
    refused(person.renew(&authority, NOW), "is not renewed");
}

#[test]
fn a_wrong_clock_is_named_and_nothing_is_signed() {
    let authority = open(NOW, None);
    let purpose = Purpose::Join(service(POST));
    let text = authority.create_token(NOW - 3600, &purpose, 1, 7200);
    let text = text.expect("a token").to_string();
    let refusal = refused(
        Workload::new(POST, "p1").join(&authority, NOW - 3600, &text),
        "the clock says 2027-01-15T07:00:00Z",
    );
    assert_eq!(refusal.code(), tonic::Code::Unavailable);
    Workload::new(POST, "p1")
        .join(&authority, NOW, &text)
        .expect("not spent meanwhile");
}

#[tokio::test]
async fn the_queue_has_a_bound_and_those_who_renew_go_first() {
    let authority = open(clock(), None);
    let queue = Queue::start(Arc::clone(&authority)).expect("a thread");
    let post = joined(&authority, clock(), POST, "p0");
    let tokens: Vec<String> = ["default/a", "default/b", "default/c"]
        .iter()
        .map(|of| token(&authority, clock(), of, 0))
        .collect();
    // While somebody holds the disk, all wait.
    let (locked, is_locked) = std::sync::mpsc::sync_channel(1);
    let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
    let holder = std::thread::spawn({
        let authority = Arc::clone(&authority);
        move || {
            let _disk = authority.disk.lock();
            locked.send(()).expect("the test waits");
            let _gone = released.recv().is_err();
        }
    });
    is_locked.recv().expect("locked");
    let joins = (0..900).map(|i| {
        let of = ["default/a", "default/b", "default/c"][i % 3];
        let workload = Workload::new(of, &format!("i{i}"));
        let request = workload.request(Some(Proof::Token(tokens[i % 3].clone())));
        let checked = authority.check(clock(), &Asker::Nobody, &request).expect("proven");
        (false, checked)
    });
    let renewal = authority
        .check(clock(), &post.asker(), &post.request(None))
        .expect("proven");
    let mut all: Vec<_> = joins.collect();
    // It comes when the queue is full.
    all.insert(600, (true, renewal));
    let mut waiting: FuturesUnordered<_> = all
        .into_iter()
        .map(|(is_renewal, checked)| {
            let granted = queue.grant(clock(), checked);
            async move { (is_renewal, granted.await) }
        })
        .collect();
    let mut busy = 0;
    // One may be in the thread's hands, and 512 wait; the others are refused at once.
    while busy < 900 - 513 {
        let (is_renewal, refused) = waiting.next().await.expect("one more");
        assert_eq!((is_renewal, refused.map(drop)), (false, Err(Refusal::Busy)));
        busy += 1;
    }
    release.send(()).expect("the holder waits");
    let (mut before, mut granted) = (None, 0);
    while let Some((is_renewal, answer)) = waiting.next().await {
        match answer {
            Ok(_) => granted += 1,
            Err(refusal) => assert_eq!(refusal, Refusal::Busy),
        }
        if is_renewal {
            before = Some(granted - 1);
        }
    }
    assert!(
        before.is_some_and(|n| n <= 1),
        "{before:?} were served before the renewal"
    );
    assert!((513..=514).contains(&granted), "{granted}");
    holder.join().expect("ends");
}
