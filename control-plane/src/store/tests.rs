//! What was stored is there after a crash; what cannot be stored is said and blocks nobody.

use outrigger_proto::model::EndpointPort;

use super::*;

fn endpoint(instance: &str, port: u16) -> Endpoint {
    Endpoint {
        name: format!("default/user/{instance}").parse().expect("valid"),
        address: [127, 0, 0, 1].into(),
        ports: vec![EndpointPort {
            name: "http".into(),
            port,
            mesh_port: None,
        }],
        epoch: 7,
        labels: BTreeMap::from([("version".into(), "v1".into())]),
        weight: 3,
        capabilities: vec!["resources.v1".into()],
        meshed: true,
    }
}

fn open(directory: &Path) -> (Store, Restored, Arc<Events>) {
    let events = Arc::new(Events::default());
    let (store, restored) = Store::open(Some(directory), &events);
    (store, restored, events)
}

#[test]
fn what_was_written_is_there_after_a_crash() {
    let scratch = tempfile::tempdir().expect("scratch");
    let (store, restored, _) = open(&scratch.path().join("a"));
    assert!(restored.config.is_none() && restored.endpoints.is_empty());
    let (one, two) = (endpoint("u1", 3001), endpoint("u2", 3002));
    store.put_config("service: user\n");
    store.put_endpoint(&one, None);
    store.put_endpoint(&endpoint("u3", 3003), None);
    store.flush();
    store.put_endpoint(&two, Some("probe: 503"));
    store.remove_endpoint(&endpoint("u3", 3003).name);
    store.flush();
    // As `kill -9` leaves it: the file of a database that was never closed.
    let crashed = scratch.path().join("b");
    std::fs::create_dir(&crashed).expect("creates");
    std::fs::copy(scratch.path().join("a").join(FILE), crashed.join(FILE)).expect("copies");
    let (again, restored, _) = open(&crashed);
    assert_eq!(restored.config.as_deref(), Some("service: user\n"));
    assert_eq!(restored.endpoints, [(one, None), (two, Some("probe: 503".into()))]);
    assert_eq!((again.failure(), store.failure()), (None, None));
}

#[test]
fn a_file_that_is_no_database_is_said_and_left_alone() {
    let scratch = tempfile::tempdir().expect("scratch");
    let file = scratch.path().join(FILE);
    std::fs::write(&file, "somebody else's file").expect("writes");
    let (store, restored, events) = open(scratch.path());
    assert!(restored.endpoints.is_empty());
    assert!(store.failure().is_some_and(|f| f.contains("going on from memory")));
    assert!(matches!(events.since(0)[0].event, Event::StoreFailed { .. }));
    store.put_endpoint(&endpoint("u1", 3001), None);
    store.flush();
    assert_eq!(std::fs::read_to_string(&file).expect("reads"), "somebody else's file");
}

#[test]
fn a_second_control_plane_does_not_share_the_file() {
    let scratch = tempfile::tempdir().expect("scratch");
    let (_first, ..) = open(scratch.path());
    let (second, ..) = open(scratch.path());
    assert!(second.failure().is_some());
}

#[test]
fn without_a_directory_everything_is_in_memory_and_well() {
    let (store, _) = Store::open(None, &Arc::new(Events::default()));
    store.put_config("x");
    store.flush();
    assert_eq!(store.failure(), None);
}
