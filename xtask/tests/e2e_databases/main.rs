//! Databases with one writer's place and many readers', behind the real `lb`: what clients see of a planned
//! switchover, of a primary that dies, and of two servers that both say that they are the primary.

mod cluster;
mod load;
mod mariadb;
mod postgres;
mod redis;
mod session;
#[path = "../stage/mod.rs"]
mod stage;
mod story;

use stage::Stage;
use xtask::world::Topology;

#[test]
fn clients_of_redis_are_led_to_the_one_master_whatever_befalls_it() {
    let stage = Stage::new("databases_redis", Topology::TwoArm, 2);
    story::tell(&stage, &mut redis::Redis::new(&stage.world));
}

#[test]
fn clients_of_mariadb_are_led_to_the_one_primary_whatever_befalls_it() {
    let stage = Stage::new("databases_mariadb", Topology::TwoArm, 3);
    story::tell(&stage, &mut mariadb::MariaDb::new(&stage.world));
}

#[test]
fn clients_of_postgresql_are_led_to_the_one_primary_whatever_befalls_it() {
    let stage = Stage::new("databases_postgres", Topology::TwoArm, 2);
    story::tell(&stage, &mut postgres::Postgres::new(&stage.world));
}
