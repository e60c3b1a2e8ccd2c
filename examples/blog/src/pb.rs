//! The services' generated messages, clients and servers, with the descriptor set that each shows by reflection.

macro_rules! service {
    ($name:ident) => {
        #[doc = concat!("Package `examples.blog.service.", stringify!($name), "`.")]
        #[allow(
            missing_docs,
            unreachable_pub,
            clippy::all,
            clippy::nursery,
            clippy::restriction
        )]
        pub mod $name {
            include!(concat!(
                env!("OUT_DIR"),
                "/examples.blog.service.",
                stringify!($name),
                ".rs"
            ));

            /// The compiled `.proto` file, for gRPC reflection.
            pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".bin"));
        }
    };
}

service!(auth);
service!(user);
service!(blog);
service!(post);
service!(subscribe);
