//! Dates as HTTP writes them (RFC 9110, section 5.6.7).

use core::str::FromStr;

/// Length of the preferred form in bytes.
pub const DATE_BYTES: usize = 29;

const DAYS: [&[u8; 3]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];
const DAY_SECONDS: u64 = 86_400;
/// 9999-12-31T23:59:59Z: four digits end there.
const LAST_SECOND: u64 = 253_402_300_799;

fn two(to: &mut [u8], value: u64) {
    to[0] = b'0' + (value / 10 % 10) as u8;
    to[1] = b'0' + (value % 10) as u8;
}

/// Writes seconds since 1970 like `Sun, 06 Nov 1994 08:49:37 GMT`.
#[must_use]
pub fn format(seconds: u64) -> [u8; DATE_BYTES] {
    let seconds = seconds.min(LAST_SECOND);
    let days = seconds / DAY_SECONDS;
    let (year, month, day) = civil(days);
    let mut to = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    to[..3].copy_from_slice(DAYS[(days % 7) as usize]);
    two(&mut to[5..7], day);
    to[8..11].copy_from_slice(MONTHS[month as usize - 1]);
    two(&mut to[12..14], year / 100);
    two(&mut to[14..16], year % 100);
    two(&mut to[17..19], seconds / 3600 % 24);
    two(&mut to[20..22], seconds / 60 % 60);
    two(&mut to[23..25], seconds % 60);
    to
}

/// Year, month and day of a number of days since 1970 (proleptic Gregorian calendar, in eras of 400
/// years that begin in March).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, year) = if month < 10 { (month + 3, year) } else { (month - 9, year + 1) };
    (era * 400 + year, month, day)
}

/// Days since 1970 of a date from 1970 on.
fn days_of(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)
}

/// Reads any of the three forms that clients may send; seconds since 1970. Nothing: not a date, or
/// one before 1970.
#[must_use]
pub fn parse(text: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(text).ok()?;
    let mut words = text.split_ascii_whitespace();
    let first = words.next()?;
    let (date, time) = if first.len() == 4 && first.ends_with(',') {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let (day, month, year) = (words.next()?, words.next()?, words.next()?);
        let date = (number(year, 4)?, month_of(month)?, number(day, 2)?);
        (date, (words.next()?, Some("GMT")))
    } else if first.ends_with(',') {
        // Sunday, 06-Nov-94 08:49:37 GMT
        let mut date = words.next()?.split('-');
        let (day, month, year) = (date.next()?, date.next()?, date.next()?);
        // Two digits: what is more than 50 years ahead is past; nobody has files from before 1970.
        let year = number(year, 2)?;
        let year = if year < 70 { 2000 + year } else { 1900 + year };
        ((year, month_of(month)?, number(day, 2)?), (words.next()?, Some("GMT")))
    } else {
        // Sun Nov  6 08:49:37 1994
        let (month, day, time, year) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let day = number(day, day.len())?;
        ((number(year, 4)?, month_of(month)?, day), (time, None))
    };
    if words.next() != time.1 || words.next().is_some() {
        return None;
    }
    let mut parts = time.0.split(':');
    let (hour, minute) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let second = number(parts.next()?, 2)?;
    let (year, month, day) = date;
    let fits = parts.next().is_none()
        && hour < 24
        && minute < 60
        && second <= 60
        && (1970..=9999).contains(&year)
        && (1..=31).contains(&day);
    if !fits {
        return None;
    }
    Some(days_of(year, month, day)? * DAY_SECONDS + hour * 3600 + minute * 60 + second)
}

fn number(text: &str, digits: usize) -> Option<u64> {
    let fits = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    if fits { u64::from_str(text).ok() } else { None }
}

fn month_of(text: &str) -> Option<u64> {
    let at = MONTHS.iter().position(|month| month.as_slice() == text.as_bytes())?;
    Some(at as u64 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_are_one_moment() {
        let moment = 784_111_777;
        assert_eq!(&format(moment), b"Sun, 06 Nov 1994 08:49:37 GMT");
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse(text.as_bytes()), Some(moment), "{text}");
        }
    }

    #[test]
    fn every_day_comes_back() {
        for day in (0..2_932_000).step_by(13) {
            let seconds = day * DAY_SECONDS + 86_399;
            assert_eq!(parse(&format(seconds)), Some(seconds));
        }
        assert_eq!(&format(951_782_400), b"Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(&format(u64::MAX), b"Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in [
            "",
            "yesterday",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT x",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1904 08:49:37 GMT",
            "Sun, 06 Nov 1994 +8:49:37 GMT",
            "Sun Nov  6 08:49:37 1994 GMT",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
