//! The smallest unikernel: says hello with its arguments, and ends.

#![cfg_attr(shoal_image, no_std, no_main)]

unikernel::main! {
    main: hello,
}

async fn hello() {
    unikernel::println!("hello from {}", unikernel::env::hostname());
    for argument in unikernel::env::args().skip(1) {
        unikernel::println!("argument: {argument}");
    }
}
