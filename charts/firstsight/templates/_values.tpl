{{- /* Written by scripts/values_tree.py: do not edit. */ -}}
{{- define "firstsight.valuesTree" -}}
{
 "commonLabels": {},
 "fullnameOverride": {},
 "images": {
  "minio": {
   "digest": {},
   "repository": {},
   "tag": {}
  },
  "pipelines": {
   "digest": {},
   "repository": {},
   "tag": {}
  },
  "pullPolicy": {},
  "pullSecrets": {},
  "registry": {},
  "tag": {},
  "trainer": {
   "digest": {},
   "repository": {},
   "tag": {}
  }
 },
 "jobs": {
  "annotations": {},
  "cpu": {},
  "environment": {},
  "ephemeralStorage": {},
  "evaluationPodTemplate": {},
  "gpuMemory": {},
  "gpuResource": {},
  "gpusPerNode": {},
  "labels": {},
  "maxIncidents": {},
  "memory": {},
  "metricsPort": {},
  "nodes": {},
  "patience": {
   "configuration": {},
   "ignored": {},
   "image": {},
   "queued": {},
   "refused": {},
   "rescheduling": {},
   "starting": {},
   "unschedulable": {},
   "volumes": {}
  },
  "podTemplate": {},
  "queue": {},
  "queueLabel": {},
  "schedulerName": {},
  "sharedMemory": {},
  "stagingCpu": {},
  "stagingEphemeralStorage": {},
  "stagingMemory": {},
  "stagingPodTemplate": {},
  "trainingPodTemplate": {},
  "ttlSeconds": {}
 },
 "kubeflow": {
  "caBundle": {},
  "endpoint": {},
  "existingSecret": {},
  "multiUser": {},
  "namespace": {},
  "pipelineName": {},
  "systemNamespace": {},
  "unregister": {}
 },
 "logs": {
  "format": {}
 },
 "metrics": {
  "dashboard": {
   "annotations": {},
   "enabled": {},
   "labels": {},
   "namespace": {}
  },
  "labels": {},
  "namespace": {},
  "podMonitor": {
   "enabled": {},
   "interval": {}
  },
  "prometheusRule": {
   "alertLabels": {},
   "checkpointAgeSeconds": {},
   "dataWaitFraction": {},
   "enabled": {},
   "pendingSeconds": {},
   "restarts": {},
   "runbookUrl": {},
   "stallSeconds": {},
   "storeFraction": {},
   "stragglerFactor": {},
   "throughputFraction": {}
  },
  "prometheusUrl": {}
 },
 "nameOverride": {},
 "network": {
  "privateSources": {}
 },
 "networkPolicy": {
  "apiServerCidrs": {},
  "apiServerPorts": {},
  "dnsCidrs": {},
  "dnsNamespace": {},
  "dnsPorts": {},
  "egress": {},
  "enabled": {},
  "jobEgress": {},
  "kubeflowCidrs": {},
  "kubeflowDrivers": {},
  "prometheusCidrs": {},
  "stagingCidrs": {},
  "stagingPorts": {},
  "storeCidrs": {}
 },
 "objectStore": {
  "bucket": {},
  "bundled": {
   "enabled": {},
   "existingSecret": {},
   "persistence": {
    "existingClaim": {},
    "size": {},
    "storageClass": {}
   },
   "resources": {
    "limits": {},
    "requests": {}
   },
   "unstableCredentials": {}
  },
  "createBucket": {},
  "external": {
   "addressing": {},
   "caBundle": {},
   "enabled": {},
   "endpoint": {},
   "existingSecret": {},
   "region": {}
  }
 },
 "pods": {
  "affinity": {},
  "annotations": {},
  "env": {},
  "hookDeadlineSeconds": {},
  "labels": {},
  "nodeSelector": {},
  "priorityClassName": {},
  "resources": {
   "limits": {},
   "requests": {}
  },
  "schedulerName": {},
  "tolerations": {},
  "topologySpreadConstraints": {}
 },
 "profileDefaults": {
  "backend": {},
  "inReleaseNamespace": {},
  "jobs": {},
  "limits": {
   "gpus": {},
   "gpusPerNode": {},
   "images": {},
   "nodes": {},
   "queues": {}
  },
  "links": {
   "bucket": {},
   "dashboard": {},
   "kubeflow": {}
  },
  "namespaces": {},
  "parallelCells": {},
  "placement": {},
  "reads": {},
  "root": {},
  "secret": {
   "create": {},
   "existingSecret": {},
   "rotation": {}
  },
  "serviceAccount": {
   "annotations": {},
   "create": {},
   "name": {}
  },
  "stagingSlices": {},
  "workloadIdentity": {
   "annotations": {},
   "audience": {},
   "create": {},
   "enabled": {},
   "name": {}
  }
 },
 "profiles": {},
 "rbac": {
  "readNodes": {}
 },
 "reaper": {
  "clusterWide": {},
  "enabled": {},
  "graceSeconds": {},
  "replicas": {},
  "resources": {
   "limits": {},
   "requests": {}
  }
 },
 "trainingRuntime": {
  "enabled": {}
 },
 "uninstall": {
  "force": {},
  "keep": {}
 }
}
{{- end -}}
{{- define "firstsight.systemFolder" -}}
^/(bin|boot|dev|etc|lib|lib32|lib64|proc|sbin|sys|usr)(/|$)
{{- end -}}
{{- define "firstsight.secretName" -}}
(?i)secret|token|passw|credential|api_?key|access_key|private_key|cookie
{{- end -}}
{{- define "firstsight.secretInUrl" -}}
(?i)://[^\s/?#@]*@|[?&;](?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|sig|signature|(?:access|auth|security)[_-]?token|token|api[_-]?key|awsaccesskeyid|key-pair-id|password)=[^&;#]
{{- end -}}
