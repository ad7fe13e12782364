//! What a guest must not do ends it, with a record that says what it was. On both backends.

#![allow(clippy::unwrap_used)]

mod common;

use common::{ImageBuilder, Instance, Outcome, backends};

/// Runs a guest that must crash; `kind` is the record's.
fn crash(backend: &str, code: &[u8], kind: &str) -> Outcome {
    let mut image = ImageBuilder::new(code);
    // `ret`, for guests that run data.
    image.data[0] = 0xc3;
    image.symbols = Some(b"1000 guest_start\n1002 guest_rest\n".to_vec());
    let outcome = Instance::new(backend, &image).run();
    assert_eq!(outcome.status, Some(134), "{backend}: {outcome:#?}");
    let record = outcome.crash.as_ref().unwrap();
    assert_eq!(record["kind"], kind, "{backend}: {record:#}");
    assert_eq!(record["backend"], backend);
    assert_eq!(record["image_sha256"].as_str().unwrap().len(), 64);
    assert!(outcome.stderr.contains("\"kind\""), "{outcome:#?}");
    outcome
}

/// The address in the record minus a register's or the image's base.
fn number(record: &serde_json::Value, field: &str) -> u64 {
    let text = record[field].as_str().unwrap_or_else(|| panic!("no {field} in {record:#}"));
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// A fault at `offset` in the image.
fn fault_in_image(code: &[u8], offset: u64) {
    for backend in backends() {
        let record = crash(backend, code, "fault").crash.unwrap();
        let at = number(&record, "fault_address").wrapping_sub(number(&record, "image_base"));
        assert_eq!(at, offset, "{backend}: {record:#}");
    }
}

// Each guest goes on to end with status 0, which the tests would see, if it is not stopped.
guest!(
    write_text,
    "mov rbx, rdi",
    "mov rax, [rdi + {image}]",
    "mov byte ptr [rax + 0x1000], 0x90",
    "mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);
guest!(
    write_rodata,
    "mov rbx, rdi",
    "mov rax, [rdi + {image}]",
    "mov byte ptr [rax + 0x10], 0x90",
    "mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);
guest!(
    execute_data,
    "mov rbx, rdi",
    "mov rax, [rdi + {image}]",
    "add rax, {data}",
    "call rax",
    "mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);
guest!(
    execute_rodata,
    "mov rbx, rdi",
    "mov rax, [rdi + {image}]",
    "call rax",
    "mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);
guest!(
    read_page_zero,
    "mov rbx, rdi",
    "xor eax, eax",
    "mov al, [rax]",
    "mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);
guest!(
    execute_heap,
    "mov rbx, rdi",
    "mov rax, [rdi + {heap}]",
    "mov byte ptr [rax], 0xc3",
    "call rax",
    "mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);
guest!(execute_stack, "mov byte ptr [rsp - 64], 0xc3", "lea rax, [rsp - 64]", "jmp rax");
guest!(overflow_stack, "2: push rax", "jmp 2b");
guest!(
    write_boot_information,
    "mov qword ptr [rdi + 8], 0",
    "mov rbx, rdi",
    "mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);
guest!(
    write_control_page,
    "mov rbx, rdi",
    "mov rax, [rdi + {control}]",
    "mov dword ptr [rax], 1",
    "mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);
guest!(
    write_sealed,
    "mov rbx, rdi",
    "mov rax, [rdi + {image}]",
    "mov byte ptr [rax + {data}], 1",
    "mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);
guest!(privileged, "mov rax, cr3", "mov cr3, rax");
guest!(
    descriptor_tables,
    "mov rbx, rdi",
    "sub rsp, 32",
    "sidt [rsp]",
    "mov rax, [rsp + 2]",
    "mov qword ptr [rax + 8], 0",
    "mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);
guest!(system_call, "mov eax, 39", "syscall", "mov edi, 3", "xor esi, esi", "syscall");
guest!(illegal, "nop", "nop", "ud2");
guest!(port, "out 0x80, al");
guest!(beyond_heap, "mov rax, [rdi + {heap}]", "add rax, [rdi + {heap} + 8]", "mov al, [rax]");

#[test]
fn text_cannot_be_written() {
    fault_in_image(write_text::code(), 0x1000);
}

#[test]
fn read_only_data_cannot_be_written() {
    fault_in_image(write_rodata::code(), 0x10);
}

#[test]
fn data_cannot_be_executed() {
    fault_in_image(execute_data::code(), common::image::DATA);
}

#[test]
fn read_only_data_cannot_be_executed() {
    fault_in_image(execute_rodata::code(), 0);
}

#[test]
fn page_zero_cannot_be_read() {
    for backend in backends() {
        let record = crash(backend, read_page_zero::code(), "fault").crash.unwrap();
        assert_eq!(number(&record, "fault_address"), 0);
    }
}

#[test]
fn heap_and_stack_cannot_be_executed_or_left() {
    for backend in backends() {
        for code in [execute_heap::code(), execute_stack::code(), beyond_heap::code()] {
            let record = crash(backend, code, "fault").crash.unwrap();
            assert_ne!(number(&record, "fault_address"), 0);
        }
        let record = crash(backend, overflow_stack::code(), "fault").crash.unwrap();
        let rsp = number(&record["registers"], "rsp");
        assert_eq!(number(&record, "fault_address"), rsp - 8, "{record:#}");
        assert_eq!(rsp % 4096, 0, "the fault is at the guard page: {record:#}");
    }
}

#[test]
fn what_the_tender_tells_cannot_be_written() {
    for backend in backends() {
        for code in [write_boot_information::code(), write_control_page::code()] {
            crash(backend, code, "fault");
        }
    }
}

#[test]
fn what_was_sealed_after_relocation_cannot_be_written() {
    for backend in backends() {
        let mut image = ImageBuilder::new(write_sealed::code());
        image.data = vec![0; 0x1000];
        let outcome = Instance::new(backend, &image).run();
        assert_eq!(outcome.status, Some(0), "{outcome:#?}");
        image.relro = Some((common::image::DATA, common::image::DATA + 0x1000));
        let outcome = Instance::new(backend, &image).run();
        assert_eq!(outcome.status, Some(134), "{outcome:#?}");
    }
}

#[test]
fn page_tables_and_the_processor_cannot_be_tampered_with() {
    for backend in backends() {
        crash(backend, privileged::code(), "fault");
        crash(backend, descriptor_tables::code(), "fault");
        crash(backend, port::code(), "fault");
    }
}

#[test]
fn system_calls_are_not_made() {
    for backend in backends() {
        let kind = if backend == "kvm" { "fault" } else { "system-call" };
        let record = crash(backend, system_call::code(), kind).crash.unwrap();
        if backend == "process" {
            assert!(record["message"].as_str().unwrap().contains("system call 39"), "{record:#}");
        }
    }
}

#[test]
fn a_record_names_the_symbol() {
    for backend in backends() {
        let record = crash(backend, illegal::code(), "fault").crash.unwrap();
        assert_eq!(record["backtrace"][0]["symbol"], "guest_rest+0x0", "{record:#}");
        assert_eq!(record["backtrace"][0]["offset"], "0x1002", "{record:#}");
    }
}
