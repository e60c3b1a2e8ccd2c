//! Resources as a control plane sends them: the first byte chooses the type, the rest is the message. What is
//! valid can be used: its name is one, its rules compile or say why not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_proto::access::{Asked, Call, Rules};
use outrigger_proto::model::{Resource, ResourceType};

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else {
        return;
    };
    let kind = ResourceType::ALL[usize::from(*kind) % ResourceType::ALL.len()];
    let Ok((resource, _)) = Resource::decode(kind, bytes) else {
        return;
    };
    assert!(!resource.name().is_empty());
    assert_eq!(ResourceType::from_url(kind.url()), Some(kind));
    if let Resource::Proxy(proxy) = resource
        && let Ok(rules) = Rules::compile(&proxy.access, "mesh.local")
    {
        let call = Call {
            caller: None,
            port: "http",
            asked: Some(Asked {
                method: "GET",
                path: "/a",
            }),
        };
        assert_eq!(rules.decide(&call), rules.explain(&call).verdict);
    }
});
