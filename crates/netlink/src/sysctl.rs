//! Kernel settings of a namespace, by their path below `/proc/sys`.

use std::fs;

use crate::error::{Cause, NetlinkError};
use crate::netns::NetnsHandle;

impl NetnsHandle {
    /// Writes settings such as `("net/ipv4/conf/all/rp_filter", "0")`, in order. A value that is
    /// there already is not written again. With `/` between the parts, a link's name may hold dots.
    ///
    /// # Errors
    /// A setting does not exist or cannot be written; those before it are in force.
    pub fn set_sysctls(&self, settings: &[(&str, &str)]) -> Result<(), NetlinkError> {
        self.run(|| write_all(settings))?
            .map_err(|(key, cause)| cause.of("set the sysctl", self.object(&key)))
    }

    /// Reads a setting, without its line end.
    ///
    /// # Errors
    /// It does not exist.
    pub fn sysctl(&self, key: &str) -> Result<String, NetlinkError> {
        self.run(|| fs::read_to_string(format!("/proc/sys/{key}")))?
            .map(|value| value.trim().to_owned())
            .map_err(|e| Cause::system("read its file", e).of("get the sysctl", self.object(key)))
    }
}

/// Writes settings in the calling thread's namespace; says which one was refused.
pub(crate) fn write_all(settings: &[(&str, &str)]) -> Result<(), (String, Cause)> {
    settings.iter().try_for_each(|(key, value)| {
        let path = format!("/proc/sys/{key}");
        if fs::read_to_string(&path).is_ok_and(|old| old.trim() == *value) {
            return Ok(());
        }
        fs::write(&path, value).map_err(|e| ((*key).to_owned(), Cause::system("write its file", e)))
    })
}
