//! `OWN_NETWORK`, where it is declared: an address for each dyno.

use hsup_proto::driver::Capability;

use super::{
    super::{
        case::{Case, Need, NotPassed, case, check},
        context::Context,
    },
    ip_info::assigned,
};

const OWN_NETWORK: &str = "own network";

pub(crate) const CASES: &[Case] = &[case!(
    OWN_NETWORK,
    "two dynos have two addresses, and may have one PORT",
    "§6: CAPABILITY_OWN_NETWORK: every dyno has its own address: PORT may repeat",
    apart,
    &[Need::Has(Capability::OwnNetwork)]
)];

async fn apart(cx: &Context) -> Result<(), NotPassed> {
    let (first, second) = (cx.hang().await?, cx.hang().await?);
    let one = assigned(cx, first.id()).await?;
    let two = assigned(cx, second.id()).await?;
    check(
        (&one.ip, one.port) != (&two.ip, two.port),
        format_args!("IPInfo of {} and {}", first.id(), second.id()),
        "an address for each, or a published port of one",
        format_args!("{}, port {}, for both", one.ip, one.port),
    )?;
    Ok(())
}
