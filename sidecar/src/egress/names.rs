//! Which host names may mean a mesh service.

use outrigger_proto::model::ServiceName;

/// The last label that always means the mesh.
const SUFFIX: &str = ".mesh";

/// `service`, `service.namespace`, and both with `.mesh` behind; none for anything else.
#[must_use]
pub(super) fn service(host: &str, own_namespace: &str) -> Option<ServiceName> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let name = host.strip_suffix(SUFFIX).unwrap_or(host);
    if name == "localhost" {
        return None;
    }
    match name.split_once('.') {
        None => ServiceName::new(own_namespace, name).ok(),
        Some((service, namespace)) => ServiceName::new(namespace, service).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_mesh_and_others() {
        for (host, expected) in [
            ("user", Some("default/user")),
            ("user.mesh", Some("default/user")),
            ("user.shop", Some("shop/user")),
            ("user.shop.mesh.", Some("shop/user")),
            ("localhost", None),
            ("127.0.0.1", None),
            ("api.example.com", None),
            ("[::1]", None),
        ] {
            assert_eq!(
                service(host, "default").as_ref().map(ServiceName::as_str),
                expected,
                "{host}"
            );
        }
    }
}
