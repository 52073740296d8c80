//! Two daemons, each with its own copy of a partition: who archives, and when the
//! other one does.

use futures::TryStreamExt;
use tierd::store::Listed;

use super::*;

/// A leader that committed the first segment, and a standby with the same one.
async fn pair() -> (Bench, Bench) {
    let leader = Bench::new();
    let clock = Arc::<ManualClock>::clone(&leader.clock);
    let standby = Bench::over(leader.store.clone(), clock, "standby");
    for bench in [&leader, &standby] {
        bench.segment(0, -10, &[&batch(0), &batch(10)]);
    }
    assert_eq!(leader.round().await, Some(Progress::Done));
    assert_eq!(standby.round().await, Some(Progress::Done), "it is all there");
    (leader, standby)
}

/// Objects of the partition, whoever wrote them. What a writer remembers for itself
/// is none.
async fn written(bench: &Bench) -> usize {
    let objects: Vec<Listed> = bench.store.list("").try_collect().await.unwrap();
    objects.iter().filter(|object| !object.name.contains("/writers/")).count()
}

/// Table: F12 I8 I13 | a writer that is gone; nobody says so
#[tokio::test]
async fn a_standby_acts_when_a_backlog_stays_for_a_minute() {
    let (_leader, standby) = pair().await;
    standby.segment(1, -9, &[&batch(20)]);
    let before = written(&standby).await;
    assert_eq!(standby.round().await, Some(Progress::Standby));
    standby.clock.advance(STANDBY_WAIT - Duration::from_secs(1));
    assert_eq!(standby.round().await, None, "nothing is due meanwhile");
    assert_eq!(written(&standby).await, before, "nothing is built for nothing");
    standby.clock.advance(Duration::from_secs(1));
    assert_eq!(standby.round().await, Some(Progress::Done));
    assert_eq!(standby.through().await, 30);

    // Now it is the one who committed last, and does not wait.
    standby.segment(2, -8, &[&batch(30)]);
    assert_eq!(standby.round().await, Some(Progress::Done));
    assert_eq!(standby.through().await, 40);
}

/// Table: F12 I8 I12 | two daemons with the same batches
#[tokio::test]
async fn a_standby_builds_nothing_that_the_other_one_commits_in_time() {
    let (leader, standby) = pair().await;
    for (id, base) in [(1, 20), (2, 30), (3, 40)] {
        for bench in [&standby, &leader] {
            bench.segment(id, -9, &[&batch(base)]);
        }
        assert_eq!(standby.round().await, Some(Progress::Standby));
        leader.clock.advance(STANDBY_WAIT / 2);
        assert_eq!(leader.round().await, Some(Progress::Done));
        let before = written(&standby).await;
        leader.clock.advance(STANDBY_WAIT / 2);
        assert_eq!(standby.round().await, Some(Progress::Done));
        assert_eq!(written(&standby).await, before);
    }
    assert_eq!(standby.through().await, 50);
}

#[tokio::test]
async fn a_leader_that_is_slow_and_gets_on_is_not_disturbed() {
    let (leader, standby) = pair().await;
    for (id, base) in [(1, 20), (2, 30), (3, 40)] {
        standby.segment(id, -9, &[&batch(base)]);
    }
    assert_eq!(standby.round().await, Some(Progress::Standby));
    let mut before = 0;
    for (id, base) in [(1, 20), (2, 30)] {
        leader.clock.advance(STANDBY_WAIT - Duration::from_secs(1));
        leader.segment(id, -9, &[&batch(base)]);
        assert_eq!(leader.round().await, Some(Progress::Done));
        before = written(&standby).await;
        leader.clock.advance(Duration::from_secs(1));
        assert_eq!(standby.round().await, Some(Progress::Standby), "it sees that he got on");
        assert_eq!(written(&standby).await, before);
    }
    // He stops.
    leader.clock.advance(STANDBY_WAIT);
    assert_eq!(standby.round().await, Some(Progress::Done));
    assert!(written(&standby).await > before);
    assert_eq!(standby.through().await, 50);
}

/// Table: F12 I3 I13 | two daemons with different batches
#[tokio::test]
async fn what_only_the_standby_has_is_committed_though_the_other_one_gets_on() {
    let (leader, standby) = pair().await;
    standby.segment(1, -9, &[&other(10)]);
    assert_eq!(standby.round().await, Some(Progress::Standby));
    for (id, base) in [(1, 20), (2, 30)] {
        leader.clock.advance(STANDBY_WAIT / 2);
        leader.segment(id, -8, &[&batch(base)]);
        assert_eq!(leader.round().await, Some(Progress::Done));
    }
    assert_eq!(standby.overlaps().await, 0);
    assert_eq!(standby.round().await, Some(Progress::Done));
    assert_eq!((standby.overlaps().await, standby.through().await), (1, 40));
}

/// A standby whose broker has written all that the leader archived, but 20 to 39.
async fn behind() -> (Bench, Bench) {
    let (leader, standby) = pair().await;
    leader.segment(1, -9, &[&batch(20), &batch(30), &batch(40)]);
    assert_eq!(leader.round().await, Some(Progress::Done));
    standby.segment(1, -9, &[&batch(40)]);
    assert_eq!(standby.round().await, Some(Progress::Done));
    assert_eq!((leader.releasable("me").await, standby.releasable("standby").await), (50, 20));
    (leader, standby)
}

/// Table: F12 I1 | a broker that has yet to write offsets which another daemon archived
#[tokio::test]
async fn what_this_broker_has_yet_to_write_is_not_told_releasable() {
    let (_leader, standby) = behind().await;
    standby.clock.advance(GAP_TIMEOUT - Duration::from_secs(1));
    assert_eq!(standby.round().await, None);
    // It comes with other bytes, which nobody else has.
    standby.segment(2, -8, &[&other(20), &batch(30)]);
    assert_eq!(standby.round().await, Some(Progress::Standby));
    assert_eq!(standby.releasable("standby").await, 20);
    standby.clock.advance(STANDBY_WAIT);
    assert_eq!(standby.round().await, Some(Progress::Done));
    assert_eq!((standby.overlaps().await, standby.releasable("standby").await), (1, 50));
}

#[tokio::test]
async fn what_nobody_writes_any_more_holds_nothing_back() {
    // A later segment was read to its end.
    let (_leader, standby) = behind().await;
    standby.segment(2, -8, &[&batch(10)]);
    assert_eq!(standby.round().await, Some(Progress::Done));
    assert_eq!(standby.releasable("standby").await, 50);
    // Or it has been long enough.
    let (_leader, standby) = behind().await;
    standby.clock.advance(GAP_TIMEOUT);
    assert_eq!(standby.round().await, Some(Progress::Done));
    assert_eq!(standby.releasable("standby").await, 50);
}

#[tokio::test]
async fn where_nothing_is_committed_nobody_waits() {
    let bench = Bench::new();
    bench.segment(0, -10, &[&batch(0)]);
    assert_eq!(bench.round().await, Some(Progress::Done));
}

/// Table: F12 I8 I13 | a change of writer that the broker tells
#[tokio::test]
async fn a_standby_acts_at_once_when_its_broker_says_that_it_leads() {
    let (leader, standby) = pair().await;
    let role = |role| standby.report(Report { role, ..Report::default() });
    standby.segment(1, -9, &[&batch(20)]);
    role(Role::Follower);
    assert_eq!(standby.round().await, Some(Progress::Standby));
    assert_eq!(standby.round().await, None, "a follower waits");
    role(Role::Leader);
    assert_eq!(standby.round().await, Some(Progress::Done));
    assert_eq!(standby.through().await, 30);
    assert_eq!(standby.round().await, None, "once");

    // Told before there is anything to wait for; and no more when it follows again.
    leader.segment(1, -9, &[&batch(20)]);
    leader.segment(2, -8, &[&batch(30)]);
    leader.clock.advance(STANDBY_WAIT);
    while leader.round().await.is_some() {
        leader.clock.advance(STANDBY_WAIT);
    }
    assert_eq!(leader.through().await, 40);
    for id in [2, 3] {
        standby.segment(id, -7, &[&batch(10 + 10 * id as i64)]);
    }
    assert_eq!(standby.round().await, Some(Progress::Done), "it need not wait");
    assert_eq!(standby.through().await, 50);
    role(Role::Follower);
    leader.segment(3, -7, &[&batch(40)]);
    leader.segment(4, -6, &[&batch(50)]);
    leader.report(Report { role: Role::Leader, ..Report::default() });
    assert_eq!(leader.round().await, Some(Progress::Done));
    standby.segment(5, -5, &[&batch(60)]);
    assert_eq!(standby.round().await, Some(Progress::Standby));
}
