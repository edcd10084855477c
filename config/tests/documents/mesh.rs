//! What holds for the whole mesh: its configuration, and foreign trust domains.
use super::*;
use postern_config::documents::mesh_config::AccessLogEncoding;

#[test]
fn federation_is_read_whole_or_refused_with_code_place_and_remedy() {
    const PEM: &str = include_str!("../golden/federation.pem");
    let pem: String = PEM.lines().map(|line| format!("    {line}\n")).collect();
    let document = |spec: &str| {
        format!(
            "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {{name: other}}\nspec:\n{spec}"
        )
    };
    let web = "  trustDomain: other.example\n  bundleEndpointURL: https://b.example:8443/x?y\n  bundleEndpointProfile: {type: https_web}\n";
    let spiffe = |id: &str| {
        web.replace("{type: https_web}", &format!("{{type: https_spiffe, endpointSPIFFEID: '{id}'}}"))
    };
    let own = spiffe("spiffe://other.example/endpoint");
    let keys = "  trustDomainBundle: '{\"keys\": [], \"spiffe_sequence\": 3}'\n";
    let mesh = |text: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    {text}\n---\n"
        )
    };

    let federated = clean(&document(web)).federated_trust_domains.remove(0).value;
    assert_eq!((federated.trust_domain.as_str(), federated.bundle), ("other.example", None));
    assert_eq!(federated.url.to_string(), "https://b.example:8443/x?y");
    let with_keys = clean(&document(&format!("{own}{keys}"))).federated_trust_domains.remove(0).value;
    assert_eq!(with_keys.bundle.unwrap().sequence, Some(3));
    let with_pem = format!("{own}  trustDomainBundle: |\n{pem}");
    let with_pem = clean(&document(&with_pem)).federated_trust_domains.remove(0).value;
    assert_eq!(with_pem.bundle.unwrap().anchors.len(), 1);
    // An endpoint of ours may serve it, too.
    clean(&document(&spiffe("spiffe://cluster.local/ns/a/sa/b")));

    for (text, code, line, reason, hint) in [
        (
            document(&web.replace("https://", "http://")),
            "PST0317",
            6,
            "does not begin with https://",
            "https://",
        ),
        (document(&web.replace("b.example", "u:p@b.example")), "PST0317", 6, "user information", "https://"),
        (document(&web.replace("?y", "#y")), "PST0317", 6, "fragment", "https://"),
        (document(&web.replace(":8443", ":0")), "PST0317", 6, "port", "https://"),
        (document(&web.replace("b.example:8443", "")), "PST0317", 6, "cannot be used", "https://"),
        (
            document(&web.replace("other.example", "Other")),
            "PST0309",
            5,
            "trust domain `Other`",
            "other.example",
        ),
        (document(&web.replace("https_web", "https_wb")), "PST0112", 7, "https_wb", "`https_web`"),
        (
            document(&web.replace("bundleEndpointURL", "bundleEndpointUrl")),
            "PST0102",
            6,
            "unknown field",
            "`bundleEndpointURL`",
        ),
        (
            document(&web.replace("{type: https_web}", "{type: https_spiffe}")),
            "PST0317",
            7,
            "without endpointSPIFFEID",
            "add",
        ),
        (
            document(&web.replace("https_web}", "https_web, endpointSPIFFEID: 'spiffe://a/b'}")),
            "PST0317",
            7,
            "host name",
            "https_spiffe",
        ),
        (document(&own), "PST0317", 7, "without trustDomainBundle", "bundle"),
        (
            document(&spiffe("other.example/x")),
            "PST0317",
            7,
            "endpointSPIFFEID `other.example/x`",
            "spiffe://",
        ),
        (
            document(&spiffe("spiffe://third.example/x")),
            "PST0317",
            7,
            "authorities nothing here names",
            "ClusterFederatedTrustDomain",
        ),
        (document(&format!("{own}  trustDomainBundle: '{{}}'\n")), "PST0317", 8, "no `keys` array", "PEM"),
        (
            document(&format!("{own}  trustDomainBundle: '{{\"keys\": [], \"keys\": []}}'\n")),
            "PST0317",
            8,
            "occurs twice",
            "PEM",
        ),
        (document(&format!("{web}  className: x\n")), "PST0408", 8, "className", "remove"),
        (document(&web.replace("other.example", "cluster.local")), "PST0317", 5, "of this mesh", "other"),
        (
            format!("{}---\n{}", document(web), document(web).replace("name: other", "name: o2")),
            "PST0317",
            13,
            "already federated",
            "keep",
        ),
        (
            format!("{}{}", mesh("trustDomainAliases: [other.example]"), document(web)),
            "PST0317",
            12,
            "all the rights of ours",
            "alias",
        ),
        (
            format!(
                "{}{}",
                mesh("trustDomain: our.example"),
                document(&web.replace("other.example", "cluster.local"))
            ),
            "PST0317",
            12,
            "stands for the mesh's own",
            "names of their own",
        ),
    ] {
        told(&text, code, line, reason, hint);
    }
}

#[test]
fn the_mesh_configuration_is_the_one_of_the_root_namespace() {
    let map = |namespace: &str, mesh: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: {namespace}}}\ndata:\n  mesh: |\n    {mesh}\n"
        )
    };
    assert_eq!(clean(&map("mesh", "rootNamespace: mesh")).mesh.root_namespace, "mesh");
    assert_eq!(clean(&map("istio-system", "rootNamespace: mesh")).mesh.root_namespace, "mesh");
    let (d, problems) = read(&map("other", "trustDomain: x"));
    assert_eq!((d.mesh.trust_domain.as_str(), problems[0].code), ("cluster.local", problem::NO_EFFECT));
    assert_eq!(clean(&map("istio-system", "enableTracing: false")).mesh.tracing_sampling, Some(0.0));
    for (sampling, code) in [
        ("0", None),
        ("100", None),
        ("12.5", None),
        ("100.1", Some(problem::OUT_OF_RANGE)),
        ("-1", Some(problem::OUT_OF_RANGE)),
        (".nan", Some(problem::OUT_OF_RANGE)),
    ] {
        let (_, problems) =
            read(&map("istio-system", &format!("defaultConfig: {{tracing: {{sampling: {sampling}}}}}")));
        assert_eq!(problems.first().map(|p| p.code), code, "{}", show(&problems));
    }
    for (file, code) in [("''", None), ("/dev/stdout", None), ("/var/log/x", Some(problem::NO_EFFECT))] {
        let (_, problems) = read(&map("istio-system", &format!("accessLogFile: {file}")));
        assert_eq!(problems.first().map(|p| p.code), code, "{}", show(&problems));
    }
    let (_, problems) = read(&map("istio-system", "\n    # c\n\n    tlsDefaults: {}"));
    assert_eq!(
        (problems[0].code, problems[0].line, problems[0].column),
        (problem::MESH_KEY_NOT_ENFORCED, 9, 5),
        "{}",
        show(&problems)
    );
    for (mesh, encoding) in [
        ("{}", None),
        ("accessLogEncoding: JSON", Some(AccessLogEncoding::Json)),
        ("accessLogEncoding: TEXT", Some(AccessLogEncoding::Text)),
    ] {
        assert_eq!(clean(&map("istio-system", mesh)).mesh.access_log_encoding, encoding, "{mesh}");
    }
    for (mesh, versions) in [
        ("{}", Versions::Tls13),
        ("meshMTLS: {}", Versions::Tls13),
        ("meshMTLS: {minProtocolVersion: TLS_AUTO}", Versions::Tls13),
        ("meshMTLS: {minProtocolVersion: TLSV1_3}", Versions::Tls13),
        ("meshMTLS: {minProtocolVersion: TLSV1_2}", Versions::Tls12And13),
    ] {
        assert_eq!(clean(&map("istio-system", mesh)).mesh.tls_versions, versions, "{mesh}");
    }
    for (mesh, code) in [
        ("meshMTLS: {minProtocolVersion: TLSV1_1}", problem::UNKNOWN_VALUE),
        ("meshMTLS: {cipherSuites: [a]}", problem::MESH_KEY_NOT_ENFORCED),
        ("meshMTLS: {minProtocolVersio: TLSV1_2}", problem::UNKNOWN_FIELD),
    ] {
        let (_, problems) = read(&map("istio-system", mesh));
        assert_eq!(problems[0].code, code, "{}", show(&problems));
    }
    let (_, problems) = read(&map("istio-system", "trustDomain: [a"));
    assert_eq!(problems[0].code, problem::SYNTAX);
    assert!(problems[0].line >= 6, "{}", problems[0]);
}

mod never_panics {
    use super::*;
    use proptest::prelude::*;

    /// Pieces that meet in real files, glued at random.
    fn pieces() -> impl Strategy<Value = String> {
        let words = prop::sample::select(vec![
            "apiVersion: v1\n",
            "kind: Service\n",
            "kind: Pod\n",
            "kind: AuthorizationPolicy\n",
            "apiVersion: security.istio.io/v1\n",
            "metadata:\n",
            "  name: a\n",
            "spec:\n",
            "  rules:\n",
            "  - from:\n",
            "    - source:\n",
            "        principals: [a]\n",
            "---\n",
            "...\n",
            "- ",
            "  ",
            "\t",
            ": ",
            "? ",
            "{",
            "}",
            "[",
            "]",
            ",",
            "&a ",
            "*a ",
            "<<: ",
            "|\n",
            ">-\n",
            "\"",
            "'",
            "#",
            "!!str ",
            "!x ",
            "\u{e9}",
            "\u{0}",
            "\r",
            "null",
            "~",
            "%TAG ! x\n",
            "data:\n",
            "  mesh: |\n    ",
            "name: istio\n",
            "{}",
            "1e999",
        ]);
        prop::collection::vec(words, 0..60).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
        #[test]
        fn on_any_text(text in any::<String>()) {
            let (documents, problems) = read(&text);
            let _ = (show(&problems), validate::runnable(&documents));
        }
        #[test]
        fn on_yaml_like_text(text in pieces()) {
            let (documents, problems) = read(&text);
            let _ = (show(&problems), validate::runnable(&documents));
        }
        #[test]
        fn on_a_damaged_real_file(at in 0..WHOLE.len(), insert in "[\\PC\\n\\t]{0,4}", cut in 0usize..40) {
            let start = (0..=at).rev().find(|i| WHOLE.is_char_boundary(*i)).unwrap();
            let end = (start + cut).min(WHOLE.len());
            let text = format!("{}{insert}{}", &WHOLE[..start], WHOLE.get(end..).unwrap_or_default());
            let (documents, problems) = read(&text);
            let _ = (show(&problems), validate::runnable(&documents));
        }
    }
}
