//! What an image is and needs, read from its bytes alone.

use std::fmt::Write;

use serde::Serialize;
use sha2::{Digest, Sha256};
use shoal_tender::elf::{Access, Image, symbols};
use shoal_tender::manifest::{Declared, kind_name};

use crate::error::ToolError;
use crate::symbols::count;

/// A declared device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// `network` or `block`.
    pub kind: &'static str,
    /// Whether the image runs without it.
    pub optional: bool,
}

/// A loaded segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// First byte, from the image's base.
    pub address: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes in the file.
    pub file_bytes: u64,
    /// `r--`, `r-x` or `rw-`.
    pub access: &'static str,
}

/// What the host's kernel still does for an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SystemCalls {
    /// For a process: guest and tender together.
    pub process: Vec<&'static str>,
    /// For a virtual machine: the tender alone; the guest makes none.
    pub kvm: Vec<&'static str>,
}

/// Everything that `shoal unikernel inspect` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Version of the contract between guest and tender.
    pub abi_version: u32,
    /// Bits of features without which it does not run.
    pub features_needed: u64,
    /// Least heap in bytes.
    pub heap_bytes_min: u64,
    /// Bytes of the stack.
    pub stack_bytes: u64,
    /// Devices, in the order of their indices.
    pub devices: Vec<Device>,
    /// What is loaded.
    pub segments: Vec<Segment>,
    /// Where it begins, from its base.
    pub entry: u64,
    /// Bytes of address space.
    pub span: u64,
    /// Addresses that the tender fills in before it starts.
    pub relocations: usize,
    /// Functions whose names are in the file.
    pub symbols: usize,
    /// What the host's kernel still does for it.
    pub system_calls: SystemCalls,
}

impl Inspection {
    /// Reads an image.
    ///
    /// # Errors
    /// [`ToolError::Rules`]: the tender would refuse it, and why.
    pub fn of(bytes: &[u8]) -> Result<Self, ToolError> {
        let image = Image::parse(bytes).map_err(|error| ToolError::Rules(Box::new(error)))?;
        let declared =
            Declared::check(&image.manifest).map_err(|error| ToolError::Rules(Box::new(error)))?;
        let devices = declared.devices.iter().map(|device| Device {
            name: device.name.clone(),
            kind: kind_name(device.kind),
            optional: device.optional,
        });
        let segments = image.segments.iter().map(|segment| Segment {
            address: segment.address,
            memory_bytes: segment.len,
            file_bytes: segment.file_len,
            access: match segment.access {
                Access::Read => "r--",
                Access::Execute => "r-x",
                Access::Write => "rw-",
            },
        });
        let devices: Vec<Device> = devices.collect();
        Ok(Self {
            sha256: hex::encode(Sha256::digest(bytes)),
            file_bytes: bytes.len() as u64,
            abi_version: image.manifest.abi_version,
            features_needed: declared.features_needed,
            heap_bytes_min: declared.heap_bytes_min,
            stack_bytes: declared.stack_bytes,
            system_calls: system_calls(&devices),
            devices,
            segments: segments.collect(),
            entry: image.entry,
            span: image.span,
            relocations: image.relocations(bytes).count(),
            symbols: symbols::table(bytes).map_or(0, count),
        })
    }

    /// As text for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Cannot fail, here and below: it writes into a string.
        let _ = writeln!(out, "sha256        {}", self.sha256);
        let _ = writeln!(out, "file          {} bytes", self.file_bytes);
        let _ = writeln!(out, "abi           {}", self.abi_version);
        let _ = writeln!(out, "heap          at least {} bytes", self.heap_bytes_min);
        let _ = writeln!(out, "stack         {} bytes", self.stack_bytes);
        let _ = writeln!(out, "relocations   {}", self.relocations);
        let _ = writeln!(out, "symbols       {} functions", self.symbols);
        let _ =
            writeln!(out, "devices       {}", if self.devices.is_empty() { "none" } else { "" });
        for device in &self.devices {
            let optional = if device.optional { ", optional" } else { "" };
            let _ = writeln!(out, "  {} ({}{optional})", device.name, device.kind);
        }
        let _ = writeln!(out, "segments      {} bytes of address space", self.span);
        for s in &self.segments {
            let (at, access) = (s.address, s.access);
            let _ = writeln!(
                out,
                "  {access} {at:#010x}  {:>9} bytes, {:>9} in the file",
                s.memory_bytes, s.file_bytes
            );
        }
        let _ = writeln!(out, "system calls");
        let _ = writeln!(out, "  process     {}", self.system_calls.process.join(" "));
        let _ = writeln!(out, "  kvm         {}", self.system_calls.kvm.join(" "));
        out
    }
}

fn system_calls(devices: &[Device]) -> SystemCalls {
    use shoal_tender::filter::{self, Parts};
    let has = |kind| devices.iter().any(|device| device.kind == kind);
    let parts = |vcpu| Parts { net: has("network"), block: has("block"), vcpu };
    SystemCalls { process: filter::names(parts(false)), kvm: filter::names(parts(true)) }
}
