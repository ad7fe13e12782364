//! Zone files: any text is refused with its place, or served.
#![no_main]

use dns_server::database::Database;
use dns_server::parser::parse_all;

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    if let Ok(zones) = parse_all([("zone", text)].into_iter()) {
        let database = Database::new(zones);
        assert!(!database.zones().iter().any(|zone| zone.records.is_empty()));
    }
});
