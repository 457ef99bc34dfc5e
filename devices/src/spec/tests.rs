use proptest::prelude::*;

use super::*;

const MEMORY: ByteLen = ByteLen::new(16 << 30);

fn problem(text: &str) -> SpecProblem {
    text.parse::<DeviceSpec>().unwrap_err().problem().clone()
}

fn problem_of_all(texts: &[&str]) -> SpecProblem {
    parse_all(texts, MEMORY).unwrap_err().problem().clone()
}

#[test]
fn every_key_is_read() {
    let spec: DeviceSpec = "private:emulated,size=256M,latency=2us,bandwidth=4G,name=gpu0,fail=7".parse().unwrap();
    assert_eq!(
        spec,
        DeviceSpec {
            memory_type: MemoryType::DevicePrivate,
            backend: Backend::parse("emulated").unwrap(),
            name: "gpu0".into(),
            size: ByteLen::new(256 << 20),
            memory: None,
            latency: Duration::from_micros(2),
            bandwidth: Some(ByteLen::new(4 << 30)),
            fail_every: NonZeroU64::new(7),
        }
    );
}

#[test]
fn each_mistake_is_named() {
    assert_eq!(problem(""), SpecProblem::Form);
    assert_eq!(problem("coherent"), SpecProblem::Form);
    assert_eq!(problem("public:emulated"), SpecProblem::UnknownType("public".into()));
    assert_eq!(problem("private:"), SpecProblem::UnknownBackend { name: String::new() });
    assert_eq!(problem("private:cuda=0"), SpecProblem::UnknownBackend { name: "cuda".into() });
    let argument = |text: &str| {
        let SpecProblem::Argument(why) = problem(text) else { panic!("{text} is refused for another reason") };
        why
    };
    assert_eq!(argument("private:emulated=0"), "backend emulated takes no argument, but `0` was given");
    for number in ["", "x", "-1", "+1", "1024", "99999999999"] {
        let why = argument(&format!("coherent:node={number}"));
        assert!(why.starts_with(&format!("node: `{number}` is not the number of a NUMA node; give node=N")), "{why}");
    }
    assert_eq!(argument("coherent:node"), argument("coherent:node="));
    assert_eq!(argument("private:dax"), argument("private:dax="));
    assert_eq!(argument("private:dax=dax0.0"), "dax: `dax0.0` is not the path of a device; give dax=/dev/daxX.Y");
    assert_eq!(problem("private:emulated,size"), SpecProblem::NotKeyValue("size".into()));
    assert_eq!(problem("private:emulated,"), SpecProblem::NotKeyValue(String::new()));
    assert_eq!(problem("private:emulated,colour=red"), SpecProblem::UnknownKey { name: "colour".into() });
    assert_eq!(problem("private:emulated,size=1G,size=1G"), SpecProblem::DuplicateKey("size"));
    assert_eq!(problem("private:emulated,latency=0ns,latency=0ns"), SpecProblem::DuplicateKey("latency"));
    assert_eq!(problem("private:emulated,size=0"), SpecProblem::Zero("size"));
    assert_eq!(problem("private:emulated,bandwidth=0"), SpecProblem::Zero("bandwidth"));
    assert_eq!(problem("private:emulated,fail=0"), SpecProblem::Zero("fail"));
    assert_eq!(problem("private:emulated,fail=often"), SpecProblem::Fail("often".into()));
    assert_eq!(problem("private:emulated,size=5000"), SpecProblem::NotPages(ByteLen::new(5000)));
    assert_eq!(problem("private:emulated,size=17T"), SpecProblem::TooLarge(ByteLen::new(17 << 40)));
    assert_eq!(problem("private:emulated,latency=11s"), SpecProblem::TooSlow(Duration::from_secs(11)));
    for name in ["", "a b", "_x", "é", &"x".repeat(33)] {
        assert_eq!(problem(&format!("private:emulated,name={name}")), SpecProblem::Name(name.into()));
    }
    for name in ["system", "migrating"] {
        assert_eq!(problem(&format!("private:emulated,name={name}")), SpecProblem::ReservedName(name.into()));
    }
}

#[test]
fn a_coherent_dax_device_is_not_for_any_program() {
    let texts = ["private:dax=/dev/dax0.0", "what", "coherent:dax=/dev/dax0.1,size=2M", "coherent:emulated"];
    let error = check_for_any_program(&texts).unwrap_err();
    assert_eq!(error.spec(), texts[2]);
    let SpecProblem::NotForAnyProgram(why) = error.problem() else { panic!("{error}") };
    assert!(
        why.starts_with("pages of /dev/dax0.1 can't be used in place by a program that doesn't know of it"),
        "{why}"
    );
    assert_eq!(check_for_any_program(&[texts[0], texts[1], texts[3]]), Ok(()));
    assert_eq!(texts[2].parse::<DeviceSpec>().unwrap().to_string(), "coherent:dax=/dev/dax0.1,size=2M,name=coherent0");
}

#[test]
fn messages_are_one_line_and_say_what_would_be_right() {
    let message = |text: &str| text.parse::<DeviceSpec>().unwrap_err().to_string();
    assert_eq!(
        message("privat:emulated"),
        "device `privat:emulated`: unknown memory type `privat`; the types are private and coherent"
    );
    assert_eq!(
        message("private:emulated,size=5000"),
        "device `private:emulated,size=5000`: size 5000 is not a multiple of the page (4096 bytes); 8K would be"
    );
    assert_eq!(
        message("private:emulated,size=1GB"),
        "device `private:emulated,size=1GB`: size: unknown unit `GB` in `1GB`; sizes take K, M, G or T (powers of 1024)"
    );
    assert_eq!(
        message("private:foo"),
        "device `private:foo`: unknown backend `foo`; known: emulated, node=N, dax=/dev/daxX.Y, compressed, file=FOLDER"
    );
    assert_eq!(
        message("private:emulated,a=b"),
        "device `private:emulated,a=b`: unknown key `a`; known: size, memory, name, latency, bandwidth, fail"
    );
}

#[test]
fn what_this_host_does_not_have_is_named() {
    let message = |text: &str| parse_all(&[text], ByteLen::new(1 << 50)).unwrap_err().to_string();
    let said = message("coherent:node=1023,size=1G");
    assert!(
        said.starts_with("device `coherent:node=1023,size=1G`: there is no node 1023; this machine has 0"),
        "{said}"
    );
    let said = message("coherent:node=0,size=8T");
    assert!(said.starts_with("device `coherent:node=0,size=8T`: size 8 TiB is more than node 0 has ("), "{said}");
    assert_eq!(
        message("private:dax=/dev/null"),
        "device `private:dax=/dev/null`: /dev/null is no device-DAX device (a character device of the dax bus)"
    );
    let said = message("private:dax=/dev/dax99.7,size=2M");
    assert!(said.contains("/dev/dax99.7 can't be opened: No such file or directory"), "{said}");
}

#[test]
fn a_node_without_a_size_gets_a_part_of_the_nodes_memory() {
    let specs = parse_all(&["coherent:node=0"], ByteLen::new(1 << 50)).unwrap();
    let node = hetmem_sys::numa::Node::new(0).unwrap();
    assert_eq!(specs[0].size, default_size(node.memory().unwrap()));
}

#[test]
fn devices_without_a_name_get_the_first_free_one_of_their_type() {
    let texts = ["private:emulated", "coherent:emulated,name=private1", "private:emulated", "coherent:emulated"];
    let names: Vec<_> = parse_all(&texts, MEMORY).unwrap().into_iter().map(|d| d.name).collect();
    assert_eq!(names, ["private0", "private1", "private2", "coherent0"]);
}

#[test]
fn the_list_is_checked_as_a_whole() {
    assert_eq!(
        problem_of_all(&["private:emulated,name=a", "coherent:emulated,name=a"]),
        SpecProblem::DuplicateName("a".into())
    );
    assert_eq!(
        problem_of_all(&["coherent:emulated,size=17G"]),
        SpecProblem::LargerThanMemory { key: "size", size: ByteLen::new(17 << 30), memory: MEMORY }
    );
    assert_eq!(
        problem_of_all(&["coherent:emulated,size=9G", "private:emulated,size=9G"]),
        SpecProblem::TogetherLargerThanMemory { total: ByteLen::new(18 << 30), memory: MEMORY }
    );
    assert_eq!(problem_of_all(&["coherent:emulated,size=1M"; MAX_DEVICES + 1]), SpecProblem::TooMany);
    assert!(parse_all(&["coherent:emulated,size=1M"; MAX_DEVICES], MEMORY).is_ok());
    assert!(parse_all::<&str>(&[], MEMORY).unwrap().is_empty());
}

#[test]
fn what_compressed_pages_may_take_is_said_apart_from_their_size() {
    let memory = |text: &str| text.parse::<DeviceSpec>().unwrap().memory().get();
    assert_eq!(memory("private:compressed,size=4G,memory=1G"), 1 << 30);
    assert_eq!(memory("private:compressed,size=4G"), 2 << 30);
    assert_eq!(memory("private:compressed,size=4K"), 64 << 10);
    assert_eq!(memory("private:emulated,size=4K"), 4 << 10);
    // The machine's memory bounds what it takes, and not what is in it.
    assert!(parse_all(&["private:compressed,size=64G,memory=1G"], MEMORY).is_ok());
    let size = ByteLen::new(32 << 30);
    assert_eq!(
        problem_of_all(&["private:compressed,size=64G"]),
        SpecProblem::DefaultLargerThanMemory { size, memory: MEMORY }
    );
    assert!(problem_of_all(&["private:compressed,size=64G"]).to_string().ends_with("give memory=…, such as memory=4G"));
    assert_eq!(
        problem_of_all(&["private:compressed,size=64G,memory=32G"]).to_string(),
        "memory 32 GiB is larger than this machine's memory (16 GiB)"
    );
    let [memory, least, size] = [100_000, 64 << 10, 4096].map(ByteLen::new);
    assert_eq!(problem("private:compressed,memory=100000"), SpecProblem::NotWhole { memory, least });
    assert!(problem("private:compressed,memory=100000").to_string().ends_with("128K would be"));
    let memory = ByteLen::new(128 << 10);
    assert_eq!(problem("private:compressed,size=4K,memory=128K"), SpecProblem::MoreThanSize { memory, size });
    assert_eq!(problem("private:compressed,memory=0"), SpecProblem::Zero("memory"));
    assert_eq!(problem("private:node=0,memory=1M"), SpecProblem::NoMemoryKey("node=0".into()));
    assert!(matches!(problem("private:compressed=x"), SpecProblem::Argument(_)));
    let coherent = problem_of_all(&["coherent:compressed"]);
    assert!(coherent.to_string().contains("use private:compressed"), "{coherent}");
}

#[test]
fn the_default_size_fits_small_machines() {
    assert_eq!(default_size(MEMORY), DEFAULT_SIZE);
    assert_eq!(default_size(ByteLen::new(1 << 30)), ByteLen::new(256 << 20));
    assert_eq!(default_size(ByteLen::new((1 << 30) + 4097)).get() % PAGE_SIZE, 0);
}

fn any_spec() -> impl Strategy<Value = DeviceSpec> {
    let bandwidth = proptest::option::of((1_u64..).prop_map(ByteLen::new));
    let latency = (0..=u64::try_from(MAX_LATENCY.as_nanos()).unwrap()).prop_map(Duration::from_nanos);
    let fail = proptest::option::of(1_u64..).prop_map(|n| n.and_then(NonZeroU64::new));
    let size = (1..=MAX_SIZE.get() / PAGE_SIZE).prop_map(|pages| ByteLen::new(pages * PAGE_SIZE));
    let name = "[A-Za-z0-9][A-Za-z0-9_.-]{0,31}";
    let backend = prop_oneof![
        Just("emulated".to_owned()),
        (0..hetmem_sys::numa::MAX_NODES).prop_map(|node| format!("node={node}")),
        "/dev/dax[0-9]{1,3}\\.[0-9]{1,3}".prop_map(|path| format!("dax={path}")),
        Just("compressed".to_owned()),
        "/[a-z=]{0,9}".prop_map(|path| format!("file={path}")),
    ];
    let part = proptest::option::of(1_u64..=16);
    (any::<bool>(), backend, size, part, name, latency, bandwidth, fail).prop_map(
        |(private, backend, size, part, name, latency, bandwidth, fail_every)| DeviceSpec {
            memory_type: if private || backend.starts_with("dax") {
                MemoryType::DevicePrivate
            } else {
                MemoryType::DeviceCoherent
            },
            backend: Backend::parse(&backend).unwrap(),
            name,
            size,
            memory: part
                .filter(|_| backend == "compressed")
                .map(|part| ByteLen::new((size.get() / part).next_multiple_of(64 << 10))),
            latency,
            bandwidth,
            fail_every,
        },
    )
}

proptest! {
    #[test]
    fn what_is_printed_parses_back(spec in any_spec()) {
        prop_assert_eq!(spec.to_string().parse::<DeviceSpec>(), Ok(spec));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "(private|coherent|.*)[:,=](emulated|node=.*|dax=.*|.*)(,[a-z]*=.*)*") {
        let _ = text.parse::<DeviceSpec>();
        let _ = parse_all(&[&text, &text], MEMORY);
    }
}
