//! Nothing: the tests of the whole program are in `tests/`, each file a subject, each test a scenario on a scratch host
//! of its own (see `testkit`).
