{{/* Name of the chart's objects: usage {{ include "firstsight.fullname" . }} */}}
{{- define "firstsight.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name cut to 63 characters and, if it was cut, kept unique by a hash: usage {{ include "firstsight.name" (list . "a" "b") }} */}}
{{- define "firstsight.name" -}}
{{- $whole := join "-" (prepend (rest .) (include "firstsight.fullname" (first .))) -}}
{{- if gt (len $whole) 63 -}}
{{- printf "%s-%s" ($whole | trunc 52 | trimSuffix "-") ($whole | sha256sum | trunc 10) -}}
{{- else -}}
{{- $whole -}}
{{- end -}}
{{- end -}}

{{/* Labels by which a component's pods are selected: usage {{ include "firstsight.selector" (list . "reaper") }} */}}
{{- define "firstsight.selector" -}}
app.kubernetes.io/name: firstsight
app.kubernetes.io/instance: {{ (first .).Release.Name | quote }}
app.kubernetes.io/component: {{ last . }}
{{- end -}}

{{/* Labels of an object: usage {{ include "firstsight.labels" (list . "reaper") }} */}}
{{- define "firstsight.labels" -}}
{{- $root := first . -}}
{{ include "firstsight.selector" . }}
app.kubernetes.io/part-of: firstsight
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Reference of an image: usage {{ include "firstsight.image" (list . "pipelines") }} */}}
{{- define "firstsight.image" -}}
{{- $root := first . -}}
{{- $image := index $root.Values.images (last .) -}}
{{- $repository := $image.repository -}}
{{- /* A repository that names its registry (`registry.example.org/x`, `localhost/x`, `host:5000/x`) is used as is. */ -}}
{{- if not (regexMatch "^([^/]*[.:][^/]*|localhost)/" $repository) -}}
{{- /* Docker Hub's registry is omitted, as in 0.1.0: the same image under a longer name would restart pods that an upgrade could leave alone. */ -}}
{{- with $root.Values.images.registry }}{{ $repository = printf "%s/%s" (trimSuffix "/" . | trimPrefix "docker.io/") $repository }}{{ end -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (coalesce $image.tag $root.Values.images.tag $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* What every pod of the chart has: usage {{ include "firstsight.pod" . | nindent 6 }} */}}
{{- define "firstsight.pod" -}}
{{- $pods := .Values.pods -}}
enableServiceLinks: false
securityContext:
  {{- include "firstsight.podSecurity" $pods.runAsUser | nindent 2 }}
  fsGroupChangePolicy: OnRootMismatch
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $pods.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pods.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pods.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pods.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $pods.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- end -}}

{{/* Security context of a pod for a user, or, if that is null, for the one assigned by the cluster (OpenShift): usage
{{ include "firstsight.podSecurity" .Values.pods.runAsUser | nindent 2 }} */}}
{{- define "firstsight.podSecurity" -}}
runAsNonRoot: true
{{- if not (kindIs "invalid" .) }}
runAsUser: {{ int64 . }}
runAsGroup: {{ int64 . }}
fsGroup: {{ int64 . }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Metadata of a pod: usage {{ include "firstsight.podMetadata" (list . "reaper") | nindent 6 }}. A service-mesh sidecar would
keep a hook from finishing; there is no version label, or every new chart would restart the store. */}}
{{- define "firstsight.podMetadata" -}}
{{- $root := first . -}}
labels:
  {{- mustMergeOverwrite (dict) $root.Values.pods.labels (include "firstsight.selector" . | fromYaml) (dict "app.kubernetes.io/part-of" "firstsight" "sidecar.istio.io/inject" "false") | toYaml | nindent 2 }}
annotations:
  {{- mustMergeOverwrite (dict) $root.Values.pods.annotations (dict "sidecar.istio.io/inject" "false") | toYaml | nindent 2 }}
{{- end -}}

{{/* Security context of every container. */}}
{{- define "firstsight.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Lines after `annotations:` of a hook: usage {{ include "firstsight.hook" (list "post-install,post-upgrade" 0) }}. A test's
pod is kept after it succeeds, since `helm test --logs` reads it afterwards; the uninstall hook deletes it. */}}
{{- define "firstsight.hook" -}}
helm.sh/hook: {{ first . }}
helm.sh/hook-weight: {{ last . | quote }}
helm.sh/hook-delete-policy: before-hook-creation{{ if ne (first .) "test" }},hook-succeeded{{ end }}
{{- end -}}

{{/* Service and namespace of Kubeflow's API if the endpoint is inside the cluster, as "service/namespace:port"; else empty. */}}
{{- define "firstsight.kubeflowService" -}}
{{- $endpoint := .Values.kubeflow.endpoint -}}
{{- with include "firstsight.urlNamespace" $endpoint -}}
{{- printf "%s/%s:%s" (get (urlParse $endpoint) "host" | splitList "." | first) . (include "firstsight.urlPort" $endpoint) -}}
{{- end -}}
{{- end -}}

{{/* Namespace in which Kubeflow checks permission to write a pipeline: the pipeline owner's, or Kubeflow's own for a shared pipeline. */}}
{{- define "firstsight.pipelineNamespace" -}}
{{- default .Values.kubeflow.systemNamespace .Values.kubeflow.namespace -}}
{{- end -}}

{{/* Common fields of a container running the pipelines image: usage {{ include "firstsight.pipelinesContainer" (list . "bucket") }} */}}
{{- define "firstsight.pipelinesContainer" -}}
{{- $root := first . -}}
name: {{ last . }}
image: {{ include "firstsight.image" (list $root "pipelines") }}
imagePullPolicy: {{ $root.Values.images.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext: {{- include "firstsight.containerSecurity" . | nindent 2 }}
command: [/usr/bin/catatonit, --, python, -m, pipelines]
{{- end -}}

{{/* Environment of the chart's own containers, taken from the values: usage {{ include "firstsight.env" . | nindent 12 }} */}}
{{- define "firstsight.env" -}}
- {name: HOME, value: /tmp}
{{- if and (eq .Values.logs.format "json") (not (hasKey .Values.pods.env "FIRSTSIGHT_LOG_FORMAT")) }}
- {name: FIRSTSIGHT_LOG_FORMAT, value: json}
{{- end }}
{{- range $name, $value := .Values.pods.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}
