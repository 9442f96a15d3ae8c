{{- /* Written by scripts/registry_files.py: do not edit. */ -}}
{{- define "firstsight.runRules" -}}
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [trainer.kubeflow.org]
  resources: [trainjobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [get, list, watch]
{{- end -}}
{{- define "firstsight.queueRules" -}}
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
- apiGroups: [kueue.x-k8s.io]
  resources: [localqueues]
  verbs: [get, list]
{{- end -}}
{{- define "firstsight.reaperRules" -}}
- apiGroups: [argoproj.io]
  resources: [workflows]
  verbs: [get, list, watch]
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [trainer.kubeflow.org]
  resources: [trainjobs]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
{{- end -}}
{{- define "firstsight.uninstallRules" -}}
- apiGroups: [kubeflow.org]
  resources: [pytorchjobs]
  verbs: [list]
- apiGroups: [trainer.kubeflow.org]
  resources: [trainjobs]
  verbs: [list]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, delete]
{{- end -}}
{{- define "firstsight.backendKinds" -}}
{
  "pytorchjob": {
    "api": "kubeflow.org/v1/PyTorchJob",
    "source": "the training operator v1"
  },
  "trainjob": {
    "api": "trainer.kubeflow.org/v1alpha1/TrainJob",
    "source": "Kubeflow Trainer v2"
  }
}
{{- end -}}
