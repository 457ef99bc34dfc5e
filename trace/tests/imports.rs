//! Traces of other tools: which touches they are, and what is said of those that are wrong.

use hetmem_core::record::Record;
use hetmem_core::units::PAGE_SIZE;
use hetmem_trace::{Format, TraceError, play};

/// A touch: the page, whether it was written, and when.
type Touch = (u64, bool, u64);

/// The pages that were touched, with whether they were written and when; and what became of the rest.
fn touches(bytes: &[u8]) -> (Vec<Touch>, Result<Format, TraceError>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    std::fs::write(&path, bytes).unwrap();
    let mut all = Vec::new();
    let played = play(&path, None, &mut |records| {
        for record in records {
            let Record::Touch { page, write, time } = record else { panic!("{record:?}") };
            all.push((page.get() / PAGE_SIZE, *write, *time));
        }
    });
    (all, played.map(|played| played.format))
}

#[test]
fn loads_and_stores_of_lackey_are_touches_and_instructions_are_none() {
    let text = "==77== Lackey, an example Valgrind tool\n==77== \nI  04000ac0,3\n L 1ffeffe7e8,8\n S 04222ffc,8\n M 04222000,4\n==77== done\n";
    let expected = [(0x1ff_effe, false, 0), (0x4222, true, 1), (0x4223, true, 1), (0x4222, true, 2)];
    let (found, format) = touches(text.as_bytes());
    assert_eq!(format.unwrap(), Format::Lackey);
    assert_eq!(found, expected);
    // valgrind was killed while it wrote.
    let (found, format) = touches(&text.as_bytes()[..text.find(" M 04").unwrap() + 6]);
    assert_eq!((found.len(), format.unwrap()), (3, Format::Lackey));
}

#[test]
fn a_line_that_is_not_lackeys_is_named() {
    for line in [" L 1ffeffe7e8", " L ,8", "hello", " X 04222000,4", " L 04222000,", " L 123456789abcdef01,8"] {
        let (found, result) = touches(format!(" L 1000,8\n{line}\n L 2000,8\n").as_bytes());
        assert_eq!(found, [(1, false, 0)]);
        let message = result.unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("line 2 is not one of lackey: `{line}`; a line of it is like")),
            "{message}"
        );
    }
}

fn request(time: u32, object: u64, next: i64) -> Vec<u8> {
    [&time.to_le_bytes()[..], &object.to_le_bytes(), &512_u32.to_le_bytes(), &next.to_le_bytes()].concat()
}

#[test]
fn each_request_of_oracle_general_is_a_touch() {
    let bytes = [request(5, 7, 2), request(5, 1 << 40, -1), request(6, 7, i64::MAX)].concat();
    let expected = [(7, false, 1000), (1 << 40, false, 2000), (7, false, 1_000_000_000)];
    for bytes in [bytes.clone(), zstd::encode_all(&bytes[..], 3).unwrap()] {
        let (found, format) = touches(&bytes);
        assert_eq!(format.unwrap(), Format::Oracle);
        assert_eq!(found, expected);
    }
    let (found, result) = touches(&bytes[..bytes.len() - 1]);
    assert_eq!(found.len(), 2);
    assert_eq!(
        result.unwrap_err().to_string(),
        "record 3 is cut off: oracleGeneral has 24 bytes for each, and 23 are left"
    );
}

/// As damo 3 writes it, with and without `--raw_number`.
#[test]
fn regions_of_damo_are_touched_as_often_as_damon_found_them_accessed() {
    let snapshot = |start: &str, end: &str, from: &str, to: &str| {
        format!(
            r#"[{{"kdamond_idx": 0, "context_idx": 0, "intervals": {{"sample_us": "5 ms", "aggr_us": "100 ms", "ops_update_us": "1 s"}},
            "scheme_idx": null, "target_id": 0, "scheme_filters": [], "snapshots": [{{"start_time": "{start}", "end_time": "{end}",
            "regions": [
             {{"start": "{from}", "end": "{to}", "nr_accesses": {{"samples": 2, "percent": null}},
              "age": {{"usec": null, "aggr_intervals": 3}}, "sz_filter_passed": "0 B"}},
             {{"start": "4,096", "end": "8,192", "nr_accesses": {{"samples": 0, "percent": null}}, "age": {{"usec": null, "aggr_intervals": 9}}}}],
            "total_bytes": "12.000 KiB", "damos_stats": null, "sample_interval_us": null}}], "data_source": "unknown"}}]"#
        )
    };
    let expected = [(16, false, 0), (17, false, 0), (16, false, 50_000_000), (17, false, 50_000_000)];
    for text in [
        snapshot("1 h 2 m 3 s", "1 h 2 m 3 s 100 ms", "65,536", "73,728"),
        snapshot("3723000000000", "3723100000000", "65536", "73728"),
    ] {
        let (found, format) = touches(text.as_bytes());
        assert_eq!(format.unwrap(), Format::Damo);
        assert_eq!(found, expected);
    }
    let (_, result) = touches(snapshot("0 ns", "100 ms", "73,728", "65,536").as_bytes());
    assert_eq!(result.unwrap_err().to_string(), "damo's snapshot 1 has a region from 0x12000 to 0x10000");
    let (_, result) = touches(snapshot("soon", "100 ms", "0", "4096").as_bytes());
    assert_eq!(result.unwrap_err().to_string(), "damo's snapshot 1 has a time that is none");
    let often = snapshot("0 ns", "1 s", "0", "4096").replace(r#""samples": 2"#, r#""samples": 18446744073709551615"#);
    let (_, result) = touches(often.as_bytes());
    assert_eq!(
        result.unwrap_err().to_string(),
        "damo's snapshot 1 has a region that was found accessed 18446744073709551615 times, more than 1000000"
    );
    let text = snapshot("0 ns", "1 s", "0", "4096");
    for length in (1..text.len()).step_by(3) {
        let (_, result) = touches(&text.as_bytes()[..length]);
        assert!(matches!(result, Err(TraceError::Json(_) | TraceError::Unknown)), "{length}");
    }
}

#[test]
fn targets_of_damo_are_apart() {
    let target = r#"{"target_id": 0, "snapshots": [{"start_time": 0, "end_time": 10, "regions":
        [{"start": 4096, "end": 8192, "nr_accesses": {"samples": null, "percent": 7.5}}]}]}"#;
    let (found, _) = touches(format!("[{target}, {target}]").as_bytes());
    assert_eq!(found.len(), 2);
    assert!(found[0].0 == 1 && found[1].0 != 1);
}
