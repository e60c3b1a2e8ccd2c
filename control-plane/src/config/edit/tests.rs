//! Only what was asked for changes, in every layout that people write.

use proptest::prelude::*;

use super::{Edit, EditError, edit};

const PUT: Edit<'_> = Edit::Put {
    list: "faults",
    name: "cli-delay",
    entry: "{ name: cli-delay, delay: 200ms }",
};
const REMOVE: Edit<'_> = Edit::Remove {
    list: "faults",
    name: "cli-delay",
};

#[track_caller]
fn check(before: &str, line: usize, what: Edit<'_>, after: &str) {
    assert_eq!(edit(before, line, what).as_deref(), Ok(after));
}

#[test]
fn an_entry_is_added_at_the_end_of_its_document() {
    check(
        "service: a # one\n# two\n---\nservice: b\n",
        1,
        PUT,
        "service: a # one\nfaults:\n- { name: cli-delay, delay: 200ms }\n# two\n---\nservice: b\n",
    );
    check(
        "service: a\nrun: |\n  x\n  y\n\n# end\n---\nservice: b # no line end",
        8,
        PUT,
        "service: a\nrun: |\n  x\n  y\n\n# end\n---\nservice: b # no line end\nfaults:\n- { name: cli-delay, delay: 200ms }",
    );
    check(
        "service: a\nports:\n  - name: x\n    # why\n    port: # none\n---\nservice: b\n",
        1,
        PUT,
        "service: a\nports:\n  - name: x\n    # why\n    port: # none\nfaults:\n- { name: cli-delay, delay: 200ms }\n---\nservice: b\n",
    );
    check(
        "{ service: a, calls: [b] } # flow\n",
        1,
        PUT,
        "{ service: a, calls: [b], faults: [{ name: cli-delay, delay: 200ms }] } # flow\n",
    );
    check(
        "service: a\r\nport: 1\r\n",
        1,
        PUT,
        "service: a\r\nport: 1\r\nfaults:\r\n- { name: cli-delay, delay: 200ms }\r\n",
    );
}

#[test]
fn an_entry_stands_behind_the_others_or_in_place_of_its_former_self() {
    check(
        "service: a\nfaults:\n  # ours\n  - name: x\n    abort: 503 # why\n  # behind\nport: 1\n",
        1,
        PUT,
        "service: a\nfaults:\n  # ours\n  - name: x\n    abort: 503 # why\n  - { name: cli-delay, delay: 200ms }\n  # behind\nport: 1\n",
    );
    check(
        "service: a\nfaults: [{ name: x, abort: 503 }] # why\n",
        1,
        PUT,
        "service: a\nfaults: [{ name: x, abort: 503 }, { name: cli-delay, delay: 200ms }] # why\n",
    );
    for empty in ["[]", "", "~", "null"] {
        let before = format!("service: a\nfaults: {empty} # none\nport: 1\n");
        let after = edit(&before, 1, PUT).expect("edited");
        assert!(
            after.contains("[{ name: cli-delay, delay: 200ms }]") && after.contains("# none\nport: 1"),
            "{after}"
        );
    }
    check(
        "service: a\nfaults:\n- name: cli-delay\n  delay: 1s\n- { name: x, abort: 503 } # x\n",
        1,
        PUT,
        "service: a\nfaults:\n- { name: cli-delay, delay: 200ms }\n- { name: x, abort: 503 } # x\n",
    );
}

#[test]
fn flow_maps_in_a_list_that_is_not_indented_are_no_flow_list() {
    let one = "{ name: x, delay: 1s, match: { path: \"/users/{id}\" }, until: \"2026-11-24T10:00:00Z\" }";
    check(
        &format!("# m\nservice: a\nfaults:\n- {one}\n# of b\n---\nservice: b\n"),
        2,
        PUT,
        &format!("# m\nservice: a\nfaults:\n- {one}\n- {{ name: cli-delay, delay: 200ms }}\n# of b\n---\nservice: b\n"),
    );
    check(
        &format!("service: a\nfaults:\n- {{ name: cli-delay, delay: 1s }}\n- {one}\nport: 1\n"),
        1,
        REMOVE,
        &format!("service: a\nfaults:\n- {one}\nport: 1\n"),
    );
}

#[test]
fn an_entry_goes_and_the_list_with_its_last() {
    check(
        "service: a\nfaults:\n- { name: cli-delay, delay: 1s }\nport: 1\n",
        1,
        REMOVE,
        "service: a\nport: 1\n",
    );
    check(
        "service: a\nfaults:\n- name: x # x\n  abort: 503\n- name: cli-delay\n  delay: 1s\n# after\nport: 1\n",
        1,
        REMOVE,
        "service: a\nfaults:\n- name: x # x\n  abort: 503\n# after\nport: 1\n",
    );
    check(
        "service: a\nfaults: [{ name: cli-delay, delay: 1s }, { name: x, abort: 503 }]\n",
        1,
        REMOVE,
        "service: a\nfaults: [{ name: x, abort: 503 }]\n",
    );
    check(
        "{ service: a, faults: [{ name: cli-delay, delay: 1s }] }\n",
        1,
        REMOVE,
        "{ service: a }\n",
    );
    let missing = EditError::NoEntry {
        list: "faults".into(),
        name: "cli-delay".into(),
    };
    assert_eq!(edit("service: a\n", 1, REMOVE), Err(missing));
}

#[test]
fn a_value_in_an_entry_changes_alone() {
    let set = Edit::Set {
        list: "routes",
        name: "rest",
        key: "to",
        value: "[{ subset: v2 }]",
    };
    check(
        "service: a\nroutes:\n- name: rest # ours\n  to:\n  - subset: v1 # old\n  timeout: 1s\n",
        1,
        set,
        "service: a\nroutes:\n- name: rest # ours\n  to: [{ subset: v2 }] # old\n  timeout: 1s\n",
    );
    check(
        "service: a\nroutes:\n- { name: rest, to: { subset: v1 }, timeout: 1s }\n",
        1,
        set,
        "service: a\nroutes:\n- { name: rest, to: [{ subset: v2 }], timeout: 1s }\n",
    );
    check(
        "service: a\nroutes:\n- name: rest\n  timeout: 1s\n- name: other\n",
        1,
        set,
        "service: a\nroutes:\n- name: rest\n  timeout: 1s\n  to: [{ subset: v2 }]\n- name: other\n",
    );
}

#[test]
fn what_would_change_something_else_is_left_to_a_person() {
    let shared = "service: a\nx: &x [{ name: y }]\nfaults: *x\n";
    assert_eq!(edit(shared, 1, PUT), Err(EditError::ByHand("faults".into())));
    assert_eq!(edit("service: a\n", 2, PUT), Err(EditError::NoDocument(2)));
}

proptest! {
    /// Whatever stands there, adding and taking away gives back the text, or is refused; it never panics.
    #[test]
    fn an_entry_that_came_and_went_leaves_no_trace(
        lines in proptest::collection::vec("(# c|port: 1|calls: \\[b\\]|env: \\{ A: b \\}|run: \\|\n  x|ports:\n  - name: y|)", 0..6),
    ) {
        let before = format!("service: a\n{}\n", lines.join("\n"));
        if let Ok(with) = edit(&before, 1, PUT) {
            prop_assert_eq!(edit(&with, 1, REMOVE).expect("it is there"), before);
        }
    }
}
