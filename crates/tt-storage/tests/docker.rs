//! Disks of containers, on a real dockerd: what other back ends show byte by byte is shown by what containers hold.

// Clippy lets helpers unwrap only in what says that it is for tests.
#[cfg(test)]
mod docker {
    use serde_json::json;
    use std::fs;
    use std::sync::Arc;
    use testkit::{Dockerd, within};
    use tt_docker::Docker;
    use tt_model::names::{Instance, LABEL_EPOCH, LABEL_INSTANCE, LABEL_VM, runtime_image};
    use tt_model::plan::{plan_detach, plan_drop_snapshot, plan_take, plan_taken};
    use tt_model::{Disk, Env, Layout, Snapshot, StorageKind, Vm, VmId, sample};
    use tt_storage::{Storage, StorageError, open_docker};

    struct Rig {
        dockerd: Dockerd,
        layout: Layout,
        docker: Arc<Docker>,
        storage: Arc<dyn Storage>,
        _dir: tempfile::TempDir,
    }

    impl Rig {
        fn new(name: &str) -> Option<Self> {
            let dockerd = Dockerd::start(name)?;
            let dir = tempfile::tempdir().unwrap();
            let (data, run) = (dir.path().join("data"), dir.path().join("run"));
            fs::create_dir_all(data.join("templates/x")).unwrap();
            Dockerd::busybox(&data.join("templates/x"), &["sleep", "1000"]);
            let layout = Layout { data, run, instance: Instance(7) };
            let docker = Arc::new(dockerd.docker());
            let storage = open_docker(&layout, docker.clone());
            Some(Self { dockerd, layout, docker, storage, _dir: dir })
        }

        fn vm(&self, id: u64) -> Vm {
            let mut vm = sample::vm(id, "docker", StorageKind::Docker);
            vm.template.digest = "12ab".into();
            vm
        }

        /// Makes the container of the runtime image if need be, as the engine does, and runs a line in it to its end.
        fn sh(&self, vm: &Vm, line: &str) -> i64 {
            let name = self.layout.container(vm.id, vm.epoch);
            let image = self.layout.docker_image(vm.id, vm.epoch);
            if self.docker.container(&name).unwrap().is_none() {
                let body = json!({
                    "Image": image,
                    "Cmd": ["sh", "-c", "sh /do"],
                    "Labels": {
                        LABEL_INSTANCE: self.layout.instance.to_string(),
                        LABEL_VM: vm.id.to_string(),
                        LABEL_EPOCH: vm.epoch.to_string(),
                    },
                    "HostConfig": {
                        "NetworkMode": "none",
                        "Binds": [format!("{}:/do:ro", self.layout.data.join("do").display())],
                    },
                });
                fs::write(self.layout.data.join("do"), "").unwrap();
                self.docker.create(&name, &body).unwrap();
            }
            fs::write(self.layout.data.join("do"), line).unwrap();
            self.docker.start(&name).unwrap();
            let mut code = None;
            let ended = within(std::time::Duration::from_secs(60), || {
                let state = self.docker.container(&name).unwrap().unwrap().state;
                code = (state.status == "exited").then_some(state.exit_code);
                code.is_some()
            });
            assert!(ended, "{line}");
            code.unwrap()
        }

        fn holds(&self, vm: &Vm, text: &str) -> bool {
            self.sh(vm, &format!("test \"$(cat /held 2>/dev/null)\" = '{text}'")) == 0
        }

        fn write(&self, vm: &Vm, text: &str) {
            assert_eq!(self.sh(vm, &format!("echo '{text}' >/held")), 0);
        }

        fn take(&self, vm: &mut Vm, name: &str) {
            vm.snapshots.insert(name.into(), Snapshot { name: name.into(), ..Snapshot::default() });
            plan_take(vm, name);
            for _ in 0..2 {
                self.storage.create_snapshot(vm, &vm.snapshots[name]).unwrap();
            }
            self.storage.sync_disk(vm, vm.snapshots[name].epoch.unwrap()).unwrap();
            plan_taken(vm, name, None, 1);
            self.storage.create_snapshot(vm, &vm.snapshots[name]).unwrap();
        }

        /// As an apply plans it.
        fn apply(&self, vm: &mut Vm, name: &str) {
            let epoch = vm.next_epoch;
            vm.next_epoch += 1;
            let old = vm.epoch;
            vm.disks.insert(epoch, Disk { parent: vm.snapshots[name].epoch, is_frozen: false });
            vm.epoch = epoch;
            vm.runtime_image = runtime_image(StorageKind::Docker, vm.id, epoch);
            vm.disks.remove(&old);
            for _ in 0..2 {
                self.storage.apply_snapshot(vm, &vm.snapshots[name]).unwrap();
            }
            assert!(plan_detach(vm));
            self.storage.destroy_snapshot(vm).unwrap();
        }

        fn is_empty(&self) -> bool {
            self.storage.collect_templates(&|_| false).unwrap();
            let images = self.docker.images(&self.layout.docker_repo()).unwrap();
            let containers = self.docker.containers(&[]).unwrap();
            let files = fs::read_dir(self.layout.data.join("images")).map_or(0, Iterator::count);
            images.is_empty() && containers.is_empty() && files == 0
        }
    }

    #[test]
    fn disks_of_containers_keep_the_contract() {
        let Some(mut rig) = Rig::new("disks_of_containers_keep_the_contract") else { return };
        disks_are_apart_and_made_once(&rig);
        snapshots_apply_in_any_order(&rig);
        a_kept_image_is_what_others_begin_with(&rig);
        what_was_cut_short_is_found(&rig);
        while_docker_is_away_nothing_is_lost(&mut rig);
        assert!(rig.is_empty());
    }

    fn disks_are_apart_and_made_once(rig: &Rig) {
        let (one, two) = (rig.vm(1), rig.vm(2));
        for vm in [&one, &two, &one] {
            rig.storage.create_image(vm).unwrap();
        }
        rig.write(&one, "one");
        rig.storage.create_image(&one).unwrap();
        assert!(rig.holds(&one, "one") && rig.holds(&two, ""));
        assert_eq!(rig.storage.images().unwrap(), [one.id, two.id]);
        let wrong = Vm { runtime_image: "images/1/0.raw".into(), ..one.clone() };
        let refused = rig.storage.create_image(&wrong);
        assert!(matches!(refused, Err(StorageError::CheckName { .. })), "{refused:?}");
        // What somebody else took away is made again from what it began with, or is lost.
        let name = rig.layout.container(two.id, 0);
        rig.docker.remove(&name).unwrap();
        rig.storage.create_image(&two).unwrap();
        rig.docker.untag(&rig.layout.docker_image(two.id, 0)).unwrap();
        let lost = rig.storage.create_image(&two);
        assert!(matches!(lost, Err(StorageError::Lost { .. })), "{lost:?}");
        for vm in [&one, &two, &one] {
            rig.storage.destroy_image(vm).unwrap();
        }
        assert!(rig.is_empty());
    }

    fn snapshots_apply_in_any_order(rig: &Rig) {
        let mut vm = rig.vm(3);
        rig.take(&mut vm, "untouched");
        for text in ["first", "second"] {
            rig.write(&vm, text);
            rig.take(&mut vm, text);
        }
        for (name, text) in [("first", "first"), ("untouched", ""), ("second", "second")] {
            rig.apply(&mut vm, name);
            assert!(rig.holds(&vm, text), "{name}");
            rig.write(&vm, "changed");
        }
        let mut vms = [vm];
        plan_drop_snapshot(&env(), &mut vms, "second").unwrap();
        rig.storage.destroy_snapshot(&vms[0]).unwrap();
        assert!(rig.holds(&vms[0], "changed"));
        let [mut vm] = vms;
        rig.apply(&mut vm, "first");
        assert!(rig.holds(&vm, "first"));
        rig.storage.destroy_image(&vm).unwrap();
        assert!(rig.is_empty());
    }

    fn a_kept_image_is_what_others_begin_with(rig: &Rig) {
        let (vm, mut heir) = (rig.vm(4), rig.vm(5));
        assert!(!rig.storage.keep_image(&vm).unwrap(), "nothing was made");
        rig.storage.create_image(&vm).unwrap();
        rig.write(&vm, "kept");
        for _ in 0..2 {
            assert!(rig.storage.keep_image(&vm).unwrap());
        }
        assert!(rig.docker.container(&rig.layout.container(vm.id, 0)).unwrap().is_none());
        heir.base = Some(vm.runtime_image.clone());
        rig.storage.create_image(&heir).unwrap();
        assert!(rig.holds(&heir, "kept"));
        rig.storage.remove_stray(vm.id).unwrap();
        assert!(rig.holds(&heir, "kept"));
        rig.storage.destroy_image(&heir).unwrap();
        heir.base = Some("images/9/0.raw".into());
        let refused = rig.storage.create_image(&heir);
        assert!(matches!(refused, Err(StorageError::CheckName { .. })), "{refused:?}");
        assert!(rig.is_empty());
    }

    fn what_was_cut_short_is_found(rig: &Rig) {
        let vm = rig.vm(6);
        rig.storage.create_image(&vm).unwrap();
        // A daemon died after it had begun a disk, another one after it had named one, a third one in a removal.
        let begun = rig.layout.data.join("images/6/9.docker.tmp");
        fs::write(&begun, "").unwrap();
        let (repo, image) = (rig.layout.docker_repo(), rig.layout.docker_image(vm.id, 0));
        rig.docker.tag(&image, &repo, "8-0").unwrap();
        assert_eq!(rig.storage.images().unwrap(), [vm.id, VmId(8)]);
        rig.storage.destroy_snapshot(&vm).unwrap();
        assert!(!begun.exists());
        for id in [vm.id, VmId(8)] {
            rig.storage.remove_stray(id).unwrap();
        }
        assert!(rig.is_empty());
    }

    fn while_docker_is_away_nothing_is_lost(rig: &mut Rig) {
        let vm = rig.vm(7);
        rig.storage.create_image(&vm).unwrap();
        rig.write(&vm, "there");
        rig.dockerd.end();
        let away = rig.storage.create_image(&vm).unwrap_err();
        assert!(away.is_retryable() && away.to_string().contains("does not answer"), "{away}");
        assert_eq!(rig.storage.images().unwrap(), [vm.id]);
        rig.storage.destroy_image(&vm).unwrap_err();
        rig.storage.remove_stray(VmId(99)).unwrap();
        rig.storage.collect_templates(&|_| false).unwrap();
        rig.dockerd.run();
        assert!(rig.holds(&vm, "there"));
        rig.storage.destroy_image(&vm).unwrap();
    }

    fn env() -> Env {
        Env {
            id: tt_model::EnvId(1),
            name: "shop".into(),
            start_timestamp: 0,
            end_timestamp: u64::MAX,
            vm_set: Default::default(),
            state: Default::default(),
            at_end: Default::default(),
            request_key: String::new(),
            is_created: true,
            is_ending: false,
            failure: None,
        }
    }
}
