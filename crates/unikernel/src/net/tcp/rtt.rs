//! The retransmission timeout (RFC 6298).

/// Timeout before anything was measured.
const INITIAL_NS: u64 = 1_000_000_000;
/// Shortest timeout. The RFC says one second; like Linux, a fifth: peers delay acknowledgements by
/// no more than that.
const SHORTEST_NS: u64 = 200_000_000;
/// Longest timeout.
const LONGEST_NS: u64 = 60_000_000_000;

/// Smoothed round trip time and its variation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtt {
    smoothed_ns: u64,
    variation_ns: u64,
    timeout_ns: u64,
    /// How often the timeout was doubled.
    doubled: u32,
}

impl Rtt {
    pub(crate) const fn new() -> Self {
        Self { smoothed_ns: 0, variation_ns: 0, timeout_ns: INITIAL_NS, doubled: 0 }
    }

    /// Takes a measurement in.
    pub(crate) fn measured(&mut self, rtt_ns: u64) {
        if self.smoothed_ns == 0 {
            self.smoothed_ns = rtt_ns.max(1);
            self.variation_ns = rtt_ns / 2;
        } else {
            let difference = self.smoothed_ns.abs_diff(rtt_ns);
            self.variation_ns = (3 * self.variation_ns + difference) / 4;
            self.smoothed_ns = ((7 * self.smoothed_ns + rtt_ns) / 8).max(1);
        }
        let timeout = self.smoothed_ns + (4 * self.variation_ns);
        self.timeout_ns = timeout.clamp(SHORTEST_NS, LONGEST_NS);
    }

    /// Something new was acknowledged: the path works.
    pub(crate) fn progressed(&mut self) {
        self.doubled = 0;
    }

    /// The timeout passed: the next one is twice as long.
    pub(crate) fn timed_out(&mut self) {
        self.doubled = (self.doubled + 1).min(16);
    }

    /// The timeout now.
    pub(crate) fn timeout_ns(&self) -> u64 {
        (self.timeout_ns << self.doubled).min(LONGEST_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_the_measurements() {
        let mut rtt = Rtt::new();
        assert_eq!(rtt.timeout_ns(), INITIAL_NS);
        rtt.measured(400_000_000);
        assert_eq!(rtt.timeout_ns(), 1_200_000_000);
        for _ in 0..50 {
            rtt.measured(1_000_000);
        }
        assert_eq!(rtt.timeout_ns(), SHORTEST_NS);
        rtt.timed_out();
        rtt.timed_out();
        assert_eq!(rtt.timeout_ns(), 4 * SHORTEST_NS);
        rtt.progressed();
        assert_eq!(rtt.timeout_ns(), SHORTEST_NS);
        for _ in 0..40 {
            rtt.timed_out();
        }
        assert_eq!(rtt.timeout_ns(), LONGEST_NS);
    }
}
