//! Dynos on a Docker Swarm: each is a service of one task, which is never started again.
//!
//! ```text
//!   calls ──▶ start.rs ── spec.rs       the container of config.rs, as a service
//!                 │   └── network.rs    the app's own overlay network
//!                 ▼
//!             dyno.rs ◀── cluster.rs    one look at all tasks and nodes, again and again
//!                 │          ├── manager.rs  whether the engine can be asked for one
//!                 │          ├── view.rs     what a look found, and those before it
//!                 │          │   └── fate.rs    what a task's state says of its dyno
//!                 │          └── model.rs    tasks and nodes, as the API has them
//!                 └── stop.rs           away from every node, and then gone
//! ```
//!
//! hsup decides, the Swarm places. A service that fails, or whose node goes away, is not started
//! anew by the Swarm: its dyno is reported, and hsup starts another one.
//!
//! A dyno is stopped by taking every node from its service. That ends the task in order, and keeps
//! it in the Swarm's books, with its exit status and what it wrote. A service that is scaled to
//! none, or removed, takes both along.

mod cluster;
mod dyno;
mod fate;
mod manager;
mod model;
mod network;
pub(crate) mod recover;
mod spec;
mod start;
mod stop;
mod view;
pub(crate) mod wish;

pub(crate) use self::{
    cluster::{Cluster, Hold},
    dyno::Placed,
    manager::manager,
    model::{Node, Task},
    network::{Membership, Networks},
    start::stays,
    wish::Wish,
};
