//! A folder as the mesh that it describes, without running it: workloads with identities and labels, services, and
//! what each workload enforces. The same plan, index and compiler as those of a running mesh.
use crate::{
    failure::Failure,
    folder::{self, Folder},
    up::plan::{Key, Plan},
};
use postern_config::{
    Documents, InboundSpec, Snapshot,
    documents::{SourceFile, kubernetes},
};
use postern_control_plane::registry::Index;
use postern_identity::{SpiffeId, TrustDomain};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    rc::Rc,
};

/// One pod, as far as policy is concerned.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The pod.
    pub key: Key,
    /// The deployment it is a replica of.
    pub deployment: Option<String>,
    /// Its service account.
    pub service_account: String,
    /// What selectors look at.
    pub labels: BTreeMap<String, String>,
    /// Its addresses: its own, or those that `postern up` would give it.
    pub addresses: Vec<IpAddr>,
    /// `None`: no sidecar, so that it has no identity and enforces nothing.
    pub identity: Option<SpiffeId>,
    /// Ports that its containers list.
    pub container_ports: Vec<u16>,
}

impl Workload {
    /// `namespace/deployment`, or `namespace/pod` of a pod without one.
    pub fn name(&self) -> String {
        format!("{}/{}", self.key.namespace, self.deployment.as_ref().unwrap_or(&self.key.name))
    }
}

/// A folder that was read, judged and planned.
pub struct Mesh {
    documents: Documents,
    plan: Plan,
    index: Index,
    workloads: Vec<Workload>,
    trust_domain: TrustDomain,
    snapshots: RefCell<BTreeMap<String, Rc<Snapshot>>>,
}

impl Mesh {
    /// Reads a folder; prints what is wrong with it on standard error.
    ///
    /// # Errors
    /// It cannot be read, or would be rejected.
    pub fn load(directory: &Path) -> Result<Self, Failure> {
        folder::locate(directory)?;
        let folder = folder::study(directory)?;
        if folder.has_errors() {
            folder.print_problems();
            return Err(Failure::new(
                format!("the folder `{}` has {}.", directory.display(), folder.tally()),
                "Repair what is listed above; nothing was decided.",
            ));
        }
        Self::of(&folder)
    }

    /// From texts, for tests.
    ///
    /// # Errors
    /// As for [`Mesh::load`].
    pub fn parse(name: &str, text: &str) -> Result<Self, Failure> {
        let (documents, problems) =
            postern_config::documents::read(&[SourceFile { name: name.into(), text: text.into() }]);
        let folder = Folder { documents, problems };
        if folder.has_errors() {
            folder.print_problems();
            return Err(Failure::new(format!("`{name}` has {}.", folder.tally()), "Repair it."));
        }
        Self::of(&folder)
    }

    fn of(folder: &Folder) -> Result<Self, Failure> {
        let mut documents = folder.documents.clone();
        // A deployment that is scaled to nothing can still be asked about.
        for deployment in &mut documents.deployments {
            deployment.value.replicas = deployment.value.replicas.max(1);
        }
        let trust_domain: TrustDomain = documents.mesh.trust_domain.parse().map_err(|e| {
            Failure::new(
                format!("the mesh has no usable trust domain: {e}."),
                "Set `trustDomain` in the mesh configuration.",
            )
        })?;
        let plan = Plan::make(&documents, &Plan::default())?;
        let own: BTreeMap<Key, Vec<IpAddr>> = plan
            .documents
            .pods
            .iter()
            .map(|pod| &pod.value)
            .filter(|pod| !pod.pod_ips.is_empty())
            .map(|pod| (Key::new(&pod.metadata.namespace, &pod.metadata.name), pod.pod_ips.clone()))
            .collect();
        let documents = plan.published(|pod| {
            let (v4, v6) = pod.addresses();
            (own.get(&pod.key).cloned().unwrap_or_else(|| vec![v4.into(), v6.into()]), BTreeMap::new())
        });
        let workloads = documents
            .pods
            .iter()
            .filter_map(|located| workload(&plan, &located.value, &trust_domain))
            .collect();
        let index = Index::build(documents.clone(), &trust_domain);
        Ok(Self { documents, plan, index, workloads, trust_domain, snapshots: RefCell::default() })
    }

    /// All pods, in the order of the files.
    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
    }

    /// Documents, with one pod for each replica and addresses for all.
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The services.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// First part of every identity.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whether certificates of a trust domain are accepted in a handshake: those of the mesh, and of federated domains.
    pub fn trusts(&self, trust_domain: &str) -> bool {
        let federated = &self.documents.federated_trust_domains;
        trust_domain == self.trust_domain.as_str()
            || federated.iter().any(|one| one.value.trust_domain.as_str() == trust_domain)
    }

    /// All service accounts: declared, or named by a pod.
    pub fn service_accounts(&self) -> BTreeSet<Key> {
        let declared = self.documents.service_accounts.iter().map(|account| &account.value.metadata);
        let declared = declared.map(|metadata| Key::new(&metadata.namespace, &metadata.name));
        let named = self.workloads.iter().map(|w| Key::new(&w.key.namespace, &w.service_account));
        declared.chain(named).collect()
    }

    /// What a workload enforces.
    ///
    /// # Errors
    /// Its policies cannot be compiled; everything that stands in the way is printed.
    pub fn snapshot(&self, workload: &Workload) -> Result<Rc<Snapshot>, Failure> {
        let name = workload.name();
        if let Some(known) = self.snapshots.borrow().get(&name) {
            return Ok(Rc::clone(known));
        }
        let refused = |why: String| {
            Failure::new(
                format!("the policy of {name} cannot be used: {why}."),
                "Run `postern check` on the folder and repair what it lists.",
            )
        };
        let policy = self
            .index
            .policy(&workload.key.namespace, &workload.service_account, &workload.key.name)
            .ok_or_else(|| refused("there is no such pod".into()))?;
        let spec: InboundSpec = serde_json::from_slice(&policy.spec).map_err(|e| refused(e.to_string()))?;
        let snapshot = Snapshot::compile(spec).map_err(|problems| {
            let reasons: Vec<String> = problems.into_iter().map(|problem| problem.reason).collect();
            refused(reasons.join("; "))
        })?;
        let snapshot = Rc::new(snapshot);
        self.snapshots.borrow_mut().insert(name, Rc::clone(&snapshot));
        Ok(snapshot)
    }
}

fn workload(plan: &Plan, pod: &kubernetes::Pod, trust_domain: &TrustDomain) -> Option<Workload> {
    let planned = plan.pods.get(&Key::new(&pod.metadata.namespace, &pod.metadata.name))?;
    let identity = planned.injected.then(|| {
        SpiffeId::for_service_account(trust_domain, &planned.key.namespace, &planned.service_account).ok()
    });
    Some(Workload {
        key: planned.key.clone(),
        deployment: planned.deployment.clone(),
        service_account: planned.service_account.clone(),
        labels: pod.metadata.labels.clone(),
        addresses: pod.pod_ips.clone(),
        identity: identity.flatten(),
        container_ports: planned.ports(),
    })
}
