//! Tables of the field names of Kubernetes' objects (API v1.34), also of fields that Postern has no use for, so that a
//! file that a cluster takes is taken here and a misspelt key is found.
use super::{Object, Shape};
use Shape::{Any, Boolean, IntOrText, Integer, List, MapOf, Text, Word};

const TEXTS: Shape = List(&Text);
const ANYS: Shape = List(&Any);
const fn object(object: &'static Object) -> Shape {
    Shape::Object(object)
}
macro_rules! top {
    ($($field:expr),*) => {
        object(&Object {
            fields: &[("apiVersion", Text), ("kind", Text), ("metadata", OBJECT_META), $($field),*],
            required: &["metadata"],
            nullable: false,
        })
    };
}

/// `metadata`.
pub const OBJECT_META: Shape = object(&Object { fields: META_FIELDS, required: &["name"], nullable: false });
const META_FIELDS: &[(&str, Shape)] = &[
    ("name", Text),
    ("namespace", Text),
    ("labels", MapOf(&Text)),
    ("annotations", MapOf(&Text)),
    ("creationTimestamp", Text),
    ("deletionGracePeriodSeconds", Integer),
    ("deletionTimestamp", Text),
    ("finalizers", TEXTS),
    ("generateName", Text),
    ("generation", Integer),
    ("managedFields", ANYS),
    ("ownerReferences", ANYS),
    ("resourceVersion", Text),
    ("selfLink", Text),
    ("uid", Text),
];

/// `Namespace`.
pub const NAMESPACE: Shape = top!(("spec", object(&Object::open(&[("finalizers", TEXTS)]))), ("status", Any));
/// `ServiceAccount`.
pub const SERVICE_ACCOUNT: Shape = top!(
    ("automountServiceAccountToken", Boolean),
    ("imagePullSecrets", List(&LOCAL_REFERENCE)),
    ("secrets", ANYS)
);
/// `ConfigMap`.
pub const CONFIG_MAP: Shape =
    top!(("data", MapOf(&Text)), ("binaryData", MapOf(&Text)), ("immutable", Boolean));
/// `Service`.
pub const SERVICE: Shape = top!(("spec", object(&SERVICE_SPEC)), ("status", Any));
/// `Deployment`.
pub const DEPLOYMENT: Shape = object(&Object {
    fields: &[
        ("apiVersion", Text),
        ("kind", Text),
        ("metadata", OBJECT_META),
        ("spec", object(&DEPLOYMENT_SPEC)),
        ("status", Any),
    ],
    required: &["metadata", "spec"],
    nullable: false,
});
/// `Pod`.
pub const POD: Shape = object(&Object {
    fields: &[
        ("apiVersion", Text),
        ("kind", Text),
        ("metadata", OBJECT_META),
        ("spec", object(&POD_SPEC)),
        ("status", object(&POD_STATUS)),
    ],
    required: &["metadata", "spec"],
    nullable: false,
});
/// `List` of any objects.
pub const LIST: Shape =
    object(&Object::open(&[("apiVersion", Text), ("kind", Text), ("metadata", Any), ("items", ANYS)]));

const LOCAL_REFERENCE: Shape = object(&Object::open(&[("name", Text)]));

const SERVICE_SPEC: Object = Object::open(&[
    ("selector", MapOf(&Text)),
    ("ports", List(&object(&SERVICE_PORT))),
    ("clusterIP", Text),
    ("clusterIPs", TEXTS),
    ("type", Word(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])),
    ("allocateLoadBalancerNodePorts", Boolean),
    ("externalIPs", TEXTS),
    ("externalName", Text),
    ("externalTrafficPolicy", Text),
    ("healthCheckNodePort", Integer),
    ("internalTrafficPolicy", Text),
    ("ipFamilies", List(&Word(&["IPv4", "IPv6"]))),
    ("ipFamilyPolicy", Word(&["SingleStack", "PreferDualStack", "RequireDualStack"])),
    ("loadBalancerClass", Text),
    ("loadBalancerIP", Text),
    ("loadBalancerSourceRanges", TEXTS),
    ("publishNotReadyAddresses", Boolean),
    ("sessionAffinity", Word(&["None", "ClientIP"])),
    ("sessionAffinityConfig", Any),
    ("trafficDistribution", Text),
]);
const SERVICE_PORT: Object = Object {
    fields: &[
        ("name", Text),
        ("port", Integer),
        ("targetPort", IntOrText),
        ("protocol", Word(&["TCP", "UDP", "SCTP"])),
        ("appProtocol", Text),
        ("nodePort", Integer),
    ],
    required: &["port"],
    nullable: false,
};

const DEPLOYMENT_SPEC: Object = Object {
    fields: &[
        ("replicas", Integer),
        ("selector", object(&LABEL_SELECTOR)),
        ("template", object(&POD_TEMPLATE)),
        ("minReadySeconds", Integer),
        ("paused", Boolean),
        ("progressDeadlineSeconds", Integer),
        ("revisionHistoryLimit", Integer),
        ("strategy", object(&Object::open(&[("type", Text), ("rollingUpdate", object(&ROLLING_UPDATE))]))),
    ],
    required: &["selector", "template"],
    nullable: false,
};
const ROLLING_UPDATE: Object = Object::open(&[("maxSurge", IntOrText), ("maxUnavailable", IntOrText)]);
const LABEL_SELECTOR: Object =
    Object::open(&[("matchLabels", MapOf(&Text)), ("matchExpressions", List(&object(&LABEL_EXPRESSION)))]);
const LABEL_EXPRESSION: Object = Object {
    fields: &[
        ("key", Text),
        ("operator", Word(&["In", "NotIn", "Exists", "DoesNotExist"])),
        ("values", TEXTS),
    ],
    required: &["key", "operator"],
    nullable: false,
};
const POD_TEMPLATE: Object = Object {
    fields: &[("metadata", object(&Object::open(META_FIELDS))), ("spec", object(&POD_SPEC))],
    required: &["spec"],
    nullable: false,
};

const POD_STATUS: Object = Object::open(&[
    ("podIP", Text),
    ("podIPs", List(&object(&Object::open(&[("ip", Text)])))),
    ("allocatedResources", Any),
    ("conditions", Any),
    ("containerStatuses", Any),
    ("ephemeralContainerStatuses", Any),
    ("extendedResourceClaimStatus", Any),
    ("hostIP", Text),
    ("hostIPs", Any),
    ("initContainerStatuses", Any),
    ("message", Text),
    ("nominatedNodeName", Text),
    ("observedGeneration", Integer),
    ("phase", Text),
    ("qosClass", Text),
    ("reason", Text),
    ("resize", Any),
    ("resourceClaimStatuses", Any),
    ("resources", Any),
    ("startTime", Text),
]);
const POD_SPEC: Object = Object {
    fields: &[
        ("serviceAccountName", Text),
        ("serviceAccount", Text),
        ("containers", List(&CONTAINER)),
        ("initContainers", List(&CONTAINER)),
        ("ephemeralContainers", ANYS),
        ("hostNetwork", Boolean),
        ("activeDeadlineSeconds", Integer),
        ("affinity", object(&AFFINITY)),
        ("automountServiceAccountToken", Boolean),
        (
            "dnsConfig",
            object(&Object::open(&[("nameservers", TEXTS), ("options", ANYS), ("searches", TEXTS)])),
        ),
        ("dnsPolicy", Text),
        ("enableServiceLinks", Boolean),
        ("hostAliases", List(&object(&Object::open(&[("hostnames", TEXTS), ("ip", Text)])))),
        ("hostIPC", Boolean),
        ("hostPID", Boolean),
        ("hostUsers", Boolean),
        ("hostname", Text),
        ("hostnameOverride", Text),
        ("imagePullSecrets", List(&LOCAL_REFERENCE)),
        ("nodeName", Text),
        ("nodeSelector", MapOf(&Text)),
        ("os", LOCAL_REFERENCE),
        ("overhead", MapOf(&IntOrText)),
        ("preemptionPolicy", Text),
        ("priority", Integer),
        ("priorityClassName", Text),
        ("readinessGates", List(&object(&Object::open(&[("conditionType", Text)])))),
        ("resourceClaims", ANYS),
        ("resources", object(&RESOURCES)),
        ("restartPolicy", Word(&["Always", "OnFailure", "Never"])),
        ("runtimeClassName", Text),
        ("schedulerName", Text),
        ("schedulingGates", List(&LOCAL_REFERENCE)),
        ("securityContext", object(&POD_SECURITY)),
        ("setHostnameAsFQDN", Boolean),
        ("shareProcessNamespace", Boolean),
        ("subdomain", Text),
        ("terminationGracePeriodSeconds", Integer),
        ("tolerations", List(&object(&TOLERATION))),
        ("topologySpreadConstraints", List(&object(&SPREAD))),
        ("volumes", List(&object(&VOLUME))),
    ],
    required: &["containers"],
    nullable: false,
};
const AFFINITY: Object = Object::open(&[
    ("nodeAffinity", AFFINITY_TERMS),
    ("podAffinity", AFFINITY_TERMS),
    ("podAntiAffinity", AFFINITY_TERMS),
]);
const AFFINITY_TERMS: Shape = object(&Object::open(&[
    ("preferredDuringSchedulingIgnoredDuringExecution", ANYS),
    ("requiredDuringSchedulingIgnoredDuringExecution", Any),
]));
const POD_SECURITY: Object = Object::open(&[
    ("appArmorProfile", Any),
    ("fsGroup", Integer),
    ("fsGroupChangePolicy", Text),
    ("runAsGroup", Integer),
    ("runAsNonRoot", Boolean),
    ("runAsUser", Integer),
    ("seLinuxChangePolicy", Text),
    ("seLinuxOptions", Any),
    ("seccompProfile", SECCOMP),
    ("supplementalGroups", List(&Integer)),
    ("supplementalGroupsPolicy", Text),
    ("sysctls", ANYS),
    ("windowsOptions", Any),
]);
const SECCOMP: Shape = object(&Object::open(&[("type", Text), ("localhostProfile", Text)]));
const TOLERATION: Object = Object::open(&[
    ("key", Text),
    ("operator", Text),
    ("value", Text),
    ("effect", Text),
    ("tolerationSeconds", Integer),
]);
const SPREAD: Object = Object::open(&[
    ("labelSelector", object(&LABEL_SELECTOR)),
    ("matchLabelKeys", TEXTS),
    ("maxSkew", Integer),
    ("minDomains", Integer),
    ("nodeAffinityPolicy", Text),
    ("nodeTaintsPolicy", Text),
    ("topologyKey", Text),
    ("whenUnsatisfiable", Text),
]);
const VOLUME: Object = Object {
    fields: &[
        ("name", Text),
        ("awsElasticBlockStore", Any),
        ("azureDisk", Any),
        ("azureFile", Any),
        ("cephfs", Any),
        ("cinder", Any),
        ("configMap", Any),
        ("csi", Any),
        ("downwardAPI", Any),
        ("emptyDir", Any),
        ("ephemeral", Any),
        ("fc", Any),
        ("flexVolume", Any),
        ("flocker", Any),
        ("gcePersistentDisk", Any),
        ("gitRepo", Any),
        ("glusterfs", Any),
        ("hostPath", Any),
        ("image", Any),
        ("iscsi", Any),
        ("nfs", Any),
        ("persistentVolumeClaim", Any),
        ("photonPersistentDisk", Any),
        ("portworxVolume", Any),
        ("projected", Any),
        ("quobyte", Any),
        ("rbd", Any),
        ("scaleIO", Any),
        ("secret", Any),
        ("storageos", Any),
        ("vsphereVolume", Any),
    ],
    required: &["name"],
    nullable: false,
};

const CONTAINER: Shape = object(&Object {
    fields: &[
        ("name", Text),
        ("image", Text),
        ("command", TEXTS),
        ("args", TEXTS),
        ("env", List(&object(&ENV_VAR))),
        (
            "envFrom",
            List(&object(&Object::open(&[("configMapRef", Any), ("prefix", Text), ("secretRef", Any)]))),
        ),
        ("ports", List(&object(&CONTAINER_PORT))),
        ("workingDir", Text),
        ("imagePullPolicy", Word(&["Always", "IfNotPresent", "Never"])),
        (
            "lifecycle",
            object(&Object::open(&[("postStart", HANDLER), ("preStop", HANDLER), ("stopSignal", Text)])),
        ),
        ("livenessProbe", object(&PROBE)),
        ("readinessProbe", object(&PROBE)),
        ("startupProbe", object(&PROBE)),
        ("resizePolicy", ANYS),
        ("resources", object(&RESOURCES)),
        ("restartPolicy", Text),
        ("restartPolicyRules", ANYS),
        ("securityContext", object(&SECURITY)),
        ("stdin", Boolean),
        ("stdinOnce", Boolean),
        ("terminationMessagePath", Text),
        ("terminationMessagePolicy", Text),
        ("tty", Boolean),
        ("volumeDevices", List(&object(&Object::open(&[("devicePath", Text), ("name", Text)])))),
        ("volumeMounts", List(&object(&VOLUME_MOUNT))),
    ],
    required: &["name"],
    nullable: false,
});
const ENV_VAR: Object = Object {
    fields: &[("name", Text), ("value", Text), ("valueFrom", object(&ENV_SOURCE))],
    required: &["name"],
    nullable: false,
};
const ENV_SOURCE: Object = Object::open(&[
    (
        "fieldRef",
        object(&Object {
            fields: &[("apiVersion", Text), ("fieldPath", Text)],
            required: &["fieldPath"],
            nullable: false,
        }),
    ),
    ("configMapKeyRef", KEY_REFERENCE),
    ("fileKeyRef", Any),
    ("resourceFieldRef", Any),
    ("secretKeyRef", KEY_REFERENCE),
]);
const KEY_REFERENCE: Shape = object(&Object::open(&[("key", Text), ("name", Text), ("optional", Boolean)]));
const CONTAINER_PORT: Object = Object {
    fields: &[
        ("containerPort", Integer),
        ("name", Text),
        ("protocol", Word(&["TCP", "UDP", "SCTP"])),
        ("hostIP", Text),
        ("hostPort", Integer),
    ],
    required: &["containerPort"],
    nullable: false,
};
const RESOURCES: Object =
    Object::open(&[("limits", MapOf(&IntOrText)), ("requests", MapOf(&IntOrText)), ("claims", ANYS)]);
const SECURITY: Object = Object::open(&[
    ("allowPrivilegeEscalation", Boolean),
    ("appArmorProfile", Any),
    ("capabilities", object(&Object::open(&[("add", TEXTS), ("drop", TEXTS)]))),
    ("privileged", Boolean),
    ("procMount", Text),
    ("readOnlyRootFilesystem", Boolean),
    ("runAsGroup", Integer),
    ("runAsNonRoot", Boolean),
    ("runAsUser", Integer),
    ("seLinuxOptions", Any),
    ("seccompProfile", SECCOMP),
    ("windowsOptions", Any),
]);
const VOLUME_MOUNT: Object = Object::open(&[
    ("name", Text),
    ("mountPath", Text),
    ("mountPropagation", Text),
    ("readOnly", Boolean),
    ("recursiveReadOnly", Text),
    ("subPath", Text),
    ("subPathExpr", Text),
]);
const EXEC: Shape = object(&Object::open(&[("command", TEXTS)]));
const HTTP_GET: Shape = object(&Object::open(&[
    ("host", Text),
    ("httpHeaders", List(&object(&Object::open(&[("name", Text), ("value", Text)])))),
    ("path", Text),
    ("port", IntOrText),
    ("scheme", Text),
]));
const TCP_SOCKET: Shape = object(&Object::open(&[("host", Text), ("port", IntOrText)]));
const HANDLER: Shape = object(&Object::open(&[
    ("exec", EXEC),
    ("httpGet", HTTP_GET),
    ("sleep", object(&Object::open(&[("seconds", Integer)]))),
    ("tcpSocket", TCP_SOCKET),
]));
const PROBE: Object = Object::open(&[
    ("exec", EXEC),
    ("failureThreshold", Integer),
    ("grpc", object(&Object::open(&[("port", Integer), ("service", Text)]))),
    ("httpGet", HTTP_GET),
    ("initialDelaySeconds", Integer),
    ("periodSeconds", Integer),
    ("successThreshold", Integer),
    ("tcpSocket", TCP_SOCKET),
    ("terminationGracePeriodSeconds", Integer),
    ("timeoutSeconds", Integer),
]);
