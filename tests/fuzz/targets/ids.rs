//! Texts that say who somebody is: ids, names and joining tokens are read back as they are written, and an error
//! repeats no secret.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_proto::model::{EndpointName, JoinToken, ServiceName, SpiffeId, check_trust_domain};

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<SpiffeId>() {
        // One spelling only: comparing ids is comparing texts.
        assert_eq!(id.as_str(), text);
        assert_eq!(SpiffeId::new(id.trust_domain(), id.service()), Ok(id.clone()));
        check_trust_domain(id.trust_domain()).expect("checked before");
    }
    if let Ok(name) = text.parse::<ServiceName>() {
        assert_eq!(name.as_str(), text);
        assert_eq!(format!("{}/{}", name.namespace(), name.service()), text);
    }
    if let Ok(name) = text.parse::<EndpointName>() {
        assert_eq!(name.to_string(), text);
    }
    match text.parse::<JoinToken>() {
        Ok(token) => {
            assert_eq!(token.to_string(), text.trim());
            assert!(!format!("{token:?}").contains(text));
        }
        Err(error) => {
            // Whatever could be a secret: no word of the error is that long.
            let secret = |part: &&str| part.len() >= 16 && part.bytes().all(|b| b.is_ascii_alphanumeric());
            let said = error.to_string();
            assert!(!text.split('.').filter(secret).any(|part| said.contains(part)));
        }
    }
});
