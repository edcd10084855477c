//! Principals, namespaces, service accounts and trust domains (reference 2.7, 2.11, Appendix B.1 and B.2).

use postern_config::matchers::identity::{
    Namespace, Principal, ServiceAccount, TrustDomainPattern, TrustDomains,
};

/// `input`: which field, its value, and the identity of the peer.
fn check((field, value, id): (&str, &str, &str), expected: bool) {
    let actual = match field {
        "principals" => Principal::parse(value).matches(id),
        "namespaces" => Namespace::parse(value).matches(id),
        "serviceAccounts" => ServiceAccount::parse(value, "my-ns").unwrap().matches(id),
        "trustDomains" => TrustDomainPattern::parse(value).unwrap().matches(id),
        other => panic!("no such field {other}"),
    };
    assert_eq!(actual, expected, "{field}: [{value:?}] on {id}");
}

#[rustfmt::skip]
const TABLE: &[((&str, &str, &str), bool)] = &[
    (("principals", "*", "spiffe://td/ns/a/sa/b"), true),
    (("principals", "td/ns/a/sa/b", "spiffe://td/ns/a/sa/b"), true),
    (("principals", "td/ns/a/sa/b", "spiffe://td/ns/a/sa/bc"), false),
    (("principals", "td/ns/a/sa/b", "spiffe://td2/ns/a/sa/b"), false),
    (("principals", "TD/ns/a/sa/b", "spiffe://td/ns/a/sa/b"), false),
    (("principals", "td/ns/a/*", "spiffe://td/ns/a/sa/b"), true),
    (("principals", "td/ns/a/*", "spiffe://td/ns/ab/sa/b"), false),
    (("principals", "*/sa/b", "spiffe://td/ns/a/sa/b"), true),
    (("principals", "*/sa/b", "spiffe://td/ns/a/sa/cb"), false),
    (("principals", "*fe://td/ns/a/sa/b", "spiffe://td/ns/a/sa/b"), false),
    (("principals", "spiffe://td/ns/a/sa/b", "spiffe://td/ns/a/sa/b"), false),
    (("principals", "td/*/sa/b", "spiffe://td/ns/sa/b"), false),
    (("namespaces", "a", "spiffe://td/ns/a/sa/b"), true),
    (("namespaces", "a", "spiffe://other/ns/a/sa/b"), true),
    (("namespaces", "a", "spiffe://td/ns/ab/sa/b"), false),
    (("namespaces", "a", "spiffe://td/ns/ba/sa/a"), false),
    (("namespaces", "a", "spiffe://td/ns/a"), false),
    (("namespaces", "ns.prod", "spiffe://td/ns/ns.prod/sa/b"), true),
    (("namespaces", "ns.prod", "spiffe://td/ns/nsxprod/sa/b"), false),
    (("namespaces", "ns.*.prod", "spiffe://td/ns/ns.eu.prod/sa/b"), true),
    (("namespaces", "ns.*.prod", "spiffe://td/ns/ns..prod/sa/b"), true),
    (("namespaces", "ns.*.prod", "spiffe://td/ns/ns.prod/sa/b"), false),
    (("namespaces", "a*", "spiffe://td/ns/abc/sa/b"), true),
    (("namespaces", "*c", "spiffe://td/ns/abc/sa/b"), true),
    (("namespaces", "*b", "spiffe://td/ns/abc/sa/b"), false),
    (("namespaces", "*", "spiffe://td/ns/abc/sa/b"), true),
    (("namespaces", "*", "spiffe://td/workload"), false),
    (("serviceAccounts", "my-ns/my-sa", "spiffe://td/ns/my-ns/sa/my-sa"), true),
    (("serviceAccounts", "my-sa", "spiffe://td/ns/my-ns/sa/my-sa"), true),
    (("serviceAccounts", "my-sa", "spiffe://any/ns/my-ns/sa/my-sa"), true),
    (("serviceAccounts", "my-sa", "spiffe://td/ns/other/sa/my-sa"), false),
    (("serviceAccounts", "my-sa", "spiffe://td/ns/my-ns/sa/my-sab"), false),
    (("serviceAccounts", "my-sa", "spiffe://td/ns/my-ns/sa/my-sa/pod"), true),
    (("serviceAccounts", "my-sa", "spiffe://td/ns/my-ns/sa/my-sa/"), false),
    (("serviceAccounts", "my-sa", "spiffe://td/ns/my-ns/x/sa/my-sa"), true),
    (("serviceAccounts", "my-sa", "spiffe://td/ns/my-ns//sa/my-sa"), false),
    (("serviceAccounts", "my-sa", "spiffe://td/ns/my-ns/xsa/my-sa"), false),
    (("serviceAccounts", "my-sa", "spiffe:///ns/my-ns/sa/my-sa"), false),
    (("serviceAccounts", "sa/sa", "spiffe://td/ns/sa/sa/sa"), true),
    (("serviceAccounts", "ns/a", "spiffe://td/ns/ns/ns/sa/a"), true),
    (("serviceAccounts", "x/a", "spiffe://td/ns/ns/x/sa/a"), true),
    (("trustDomains", "*", "spiffe://foo/ns/a/sa/b"), true),
    (("trustDomains", "foo", "spiffe://foo/ns/a/sa/b"), true),
    (("trustDomains", "foo", "spiffe://foobar/ns/a/sa/b"), false),
    (("trustDomains", "foo", "spiffe://foo"), false),
    (("trustDomains", "foo*", "spiffe://foobar/ns/a/sa/b"), true),
    (("trustDomains", "foo*", "spiffe://barfoo/ns/a/sa/b"), false),
    (("trustDomains", "*foo", "spiffe://barfoo/ns/a/sa/b"), true),
    (("trustDomains", "*foo", "spiffe://foobar/ns/a/sa/foo"), false),
];

#[test]
fn identity_fields_match_what_istio_would_match() {
    for (input, expected) in TABLE {
        check(*input, *expected);
    }
}

#[test]
fn bad_service_accounts_and_trust_domains_are_refused() {
    for bad in ["too/many/slashes", "/emptyns", "emptysa/", "a*", "*", &"x".repeat(321)] {
        assert!(ServiceAccount::parse(bad, "my-ns").is_err(), "{bad:?}");
    }
    for bad in ["fo*-bar", "fo*bar*", "a/b", "**"] {
        assert!(TrustDomainPattern::parse(bad).is_err(), "{bad:?}");
    }
}

/// Trust domain, aliases, what a policy says, what it stands for.
type AliasRow = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);

#[rustfmt::skip]
const ALIASES: &[AliasRow] = &[
    ("cluster.local", &[], &["cluster.local/ns/foo/sa/bar"], &["cluster.local/ns/foo/sa/bar"]),
    ("cluster.local", &[], &["*"], &["*"]),
    ("cluster.local", &[], &["*/ns/foo/sa/bar"], &["*/ns/foo/sa/bar"]),
    ("td2", &["td1"], &["td1/ns/foo/sa/bar"], &["td2/ns/foo/sa/bar", "td1/ns/foo/sa/bar"]),
    ("td1", &["cluster.local"], &["cluster.local/ns/foo/sa/bar", "cluster.local/ns/yyy/sa/zzz"],
        &["td1/ns/foo/sa/bar", "cluster.local/ns/foo/sa/bar", "td1/ns/yyy/sa/zzz", "cluster.local/ns/yyy/sa/zzz"]),
    ("td1", &["cluster.local"], &["*/ns/foo/sa/bar", "*sa/zzz", "*"], &["*/ns/foo/sa/bar", "*sa/zzz", "*"]),
    ("td2", &["td1", "cluster.local"], &["cluster.local/ns/foo/sa/bar", "td1/ns/yyy/sa/zzz"],
        &["td2/ns/foo/sa/bar", "td1/ns/foo/sa/bar", "cluster.local/ns/foo/sa/bar",
          "td2/ns/yyy/sa/zzz", "td1/ns/yyy/sa/zzz", "cluster.local/ns/yyy/sa/zzz"]),
    ("td2", &["foo-td1", "cluster.local"], &["*-td1/ns/foo/sa/bar"],
        &["td2/ns/foo/sa/bar", "*-td1/ns/foo/sa/bar", "cluster.local/ns/foo/sa/bar"]),
    ("td1", &["td2"], &["some-td/ns/foo/sa/bar"], &["some-td/ns/foo/sa/bar"]),
    ("td1", &["td2", "some-td"], &["some-td/ns/foo/sa/bar"],
        &["td1/ns/foo/sa/bar", "td2/ns/foo/sa/bar", "some-td/ns/foo/sa/bar"]),
    ("new-td", &["td2", "td3"], &["td1/ns/some-ns/sa/some-sa", "td2/ns/foo/sa/bar"],
        &["td1/ns/some-ns/sa/some-sa", "new-td/ns/foo/sa/bar", "td2/ns/foo/sa/bar", "td3/ns/foo/sa/bar"]),
    ("new-td", &["td2", "td3"], &["/ns/some-ns/sa/some-sa"], &["/ns/some-ns/sa/some-sa"]),
    ("new-td", &["old-td"], &["*-td/ns/some-ns/sa/some-sa"], &["*-td/ns/some-ns/sa/some-sa"]),
    ("td1", &[], &["cluster.local/ns/a/sa/b"], &["td1/ns/a/sa/b"]),
    ("td1", &[], &["cluster.local/ns/a/*"], &["cluster.local/ns/a/*"]),
];

#[test]
fn five_part_principals_follow_the_trust_domain_and_its_aliases() {
    for (own, aliases, input, expected) in ALIASES {
        let aliases: Vec<String> = aliases.iter().map(ToString::to_string).collect();
        let domains = TrustDomains { own, aliases: &aliases };
        let actual: Vec<String> = input.iter().flat_map(|one| domains.expand_principal(one)).collect();
        assert_eq!(actual, *expected, "{own}; {aliases:?}: {input:?}");
    }
}

#[test]
fn a_known_trust_domain_stands_for_all_of_ours_and_cluster_local_is_no_pointer_there() {
    let aliases = ["td2".to_string()];
    let domains = TrustDomains { own: "td1", aliases: &aliases };
    assert_eq!(domains.expand_trust_domain("td2"), ["td1", "td2"]);
    assert_eq!(domains.expand_trust_domain("td*"), ["td*"]);
    assert_eq!(domains.expand_trust_domain("cluster.local"), ["cluster.local"]);
}
