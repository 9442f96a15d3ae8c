{{/* Every profile in each of its namespaces, as a JSON list of profiles with `name` and `namespace`, `unnamed` where the values name
none. Usage: {{ range include "firstsight.runs" . | fromJsonArray }}. Computed once, because it queries the cluster. */}}
{{- define "firstsight.runs" -}}
{{- if not (hasKey .Values "runs") }}{{ $_ := set .Values "runs" (include "firstsight.findRuns" .) }}{{ end -}}
{{- .Values.runs -}}
{{- end -}}

{{- define "firstsight.findRuns" -}}
{{- $runs := list -}}
{{- range $name, $profile := .Values.profiles -}}
{{- if not (kindIs "invalid" $profile) -}}
{{- $whole := mustMergeOverwrite (deepCopy $.Values.profileDefaults) (deepCopy $profile) -}}
{{- $_ := set $whole "jobs" (mustMergeOverwrite (deepCopy $.Values.jobs) $whole.jobs) -}}
{{- range include "firstsight.profileNamespaces" (list $ $name $whole) | fromJsonArray -}}
{{- $one := dict "name" $name "namespace" . "unnamed" (not $whole.namespaces) -}}
{{- $_ := set $one "secret" (dict "existingSecret" ($whole.secret.existingSecret | replace "{namespace}" .)) -}}
{{- $runs = append $runs (mustMergeOverwrite (deepCopy $whole) $one) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $runs -}}
{{- end -}}

{{/* The namespaces of a profile, as a JSON list: usage {{ include "firstsight.profileNamespaces" (list . $name $profile) }} */}}
{{- define "firstsight.profileNamespaces" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $profile := index . 2 -}}
{{- $release := $root.Release.Namespace -}}
{{- $found := include "firstsight.foundInRelease" (list $root $name) -}}
{{- if and (has $release $profile.namespaces) (not $profile.inReleaseNamespace) (not $found) -}}
{{- fail (printf "profiles.%s.namespaces: runs may not live in the release's namespace %s: their permission to create Jobs would give them access to the store's root Secret and the reaper's service account there. Name another namespace, or accept the risk with profiles.%s.inReleaseNamespace=true" $name $release $name) -}}
{{- end -}}
{{- if $profile.namespaces -}}
{{- toJson $profile.namespaces -}}
{{- else if or $profile.inReleaseNamespace $found -}}
{{- list $release | toJson -}}
{{- else if include "firstsight.seesCluster" $root -}}
{{- list (include "firstsight.runsNamespace" $root) | toJson -}}
{{- else -}}
{{- fail (printf "profiles.%s.namespaces must be set when the cluster cannot be queried for them (helm template, GitOps): new installs use [%s]; older ones used [%s], which needs inReleaseNamespace=true" $name (include "firstsight.runsNamespace" $root) $release) -}}
{{- end -}}
{{- end -}}

{{/* Whether the chart has access to the cluster, "true" or nothing: `lookup` finds nothing in `helm template`, Argo CD and --dry-run=client. */}}
{{- define "firstsight.seesCluster" -}}
{{- if or (lookup "v1" "ServiceAccount" .Release.Namespace "default") (lookup "v1" "Namespace" "" "kube-system") }}true{{ end -}}
{{- end -}}

{{/* Whether an earlier version of this release put a profile into the release's namespace: "true" or nothing.
Usage: {{ include "firstsight.foundInRelease" (list . $name) }} */}}
{{- define "firstsight.foundInRelease" -}}
{{- $root := first . -}}
{{- $found := lookup "v1" "ConfigMap" $root.Release.Namespace (last .) -}}
{{- if eq (dig "metadata" "labels" "app.kubernetes.io/instance" "" $found) $root.Release.Name -}}
{{- if hasKey (default (dict) $found.data) "profile.yaml" }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* The namespace for runs of a new install unless the values say otherwise. */}}
{{- define "firstsight.runsNamespace" -}}
{{- printf "%s-runs" (.Release.Namespace | trunc 58 | trimSuffix "-") -}}
{{- end -}}

{{/* The account of a run's job pods; empty: the namespace's default. Usage: {{ include "firstsight.jobAccount" $run }} */}}
{{- define "firstsight.jobAccount" -}}
{{- if .workloadIdentity.enabled }}{{ default (printf "%s-jobs" .name) .workloadIdentity.name }}{{ end -}}
{{- end -}}

{{/* The namespaces of all profiles, as a JSON list without repetition. */}}
{{- define "firstsight.runNamespaces" -}}
{{- $names := list -}}
{{- range include "firstsight.runs" . | fromJsonArray }}{{ $names = append $names .namespace }}{{ end -}}
{{- $names | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* The account that a run's steps have: usage {{ include "firstsight.runAccount" $run }} */}}
{{- define "firstsight.runAccount" -}}
{{- default .name .serviceAccount.name -}}
{{- end -}}

{{/* Where a run keeps everything: usage {{ include "firstsight.runRoot" (list . $run) }} */}}
{{- define "firstsight.runRoot" -}}
{{- $root := first . -}}{{- $run := last . -}}
{{- default (printf "s3://%s/{namespace}" $root.Values.objectStore.bucket) $run.root | replace "{namespace}" $run.namespace -}}
{{- end -}}

{{/* The Kueue LocalQueue that a profile's jobs name; empty: none: usage {{ include "firstsight.kueue" $run }} */}}
{{- define "firstsight.kueue" -}}
{{- $jobs := .jobs -}}
{{- if and $jobs.queue (eq $jobs.queueLabel "kueue.x-k8s.io/queue-name") }}{{ $jobs.queue }}{{ else }}{{ get $jobs.labels "kueue.x-k8s.io/queue-name" }}{{ end -}}
{{- end -}}

{{/* The Kueue LocalQueues that a profile's jobs may name, as a JSON list: its own, and those of `limits.queues`, of which a run names one:
usage {{ include "firstsight.kueues" $run | fromJsonArray }} */}}
{{- define "firstsight.kueues" -}}
{{- $queues := list -}}
{{- with include "firstsight.kueue" . }}{{ $queues = append $queues . }}{{ end -}}
{{- if eq .jobs.queueLabel "kueue.x-k8s.io/queue-name" }}{{ $queues = concat $queues .limits.queues }}{{ end -}}
{{- $queues | uniq | toJson -}}
{{- end -}}

{{/* The port at which a profile's jobs serve metrics: usage {{ include "firstsight.metricsPort" $run }} */}}
{{- define "firstsight.metricsPort" -}}
{{- int64 (default .jobs.metricsPort (get .placement "metrics_port")) -}}
{{- end -}}

{{/* A value as text, including large integers: Helm holds numbers as floats and would write 34359738368 as 3.4359738368e+10. */}}
{{- define "firstsight.number" -}}
{{- if and (kindIs "float64" .) (eq (toString (floor .)) (toString .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* profile.yaml (pipelines/profile/profile.py): usage {{ include "firstsight.profile" (list . $run) }}. Fields added after 0.1.0 are
written only if they differ from the default: a step of an older pipeline version, still running, reads this file too. */}}
{{- define "firstsight.profile" -}}
{{- $root := first . -}}{{- $run := last . -}}{{- $jobs := $run.jobs -}}
{{- $environment := include "firstsight.storeEnvironment" $root | fromYaml -}}
{{- if eq $root.Values.logs.format "json" }}{{ $_ := set $environment "FIRSTSIGHT_LOG_FORMAT" "json" }}{{ end -}}
{{- $environment = mustMergeOverwrite $environment $jobs.environment -}}
{{- $labels := deepCopy $jobs.labels -}}
{{- with $jobs.queue }}{{ $_ := set $labels $jobs.queueLabel . }}{{ end -}}
root: {{ include "firstsight.runRoot" . }}
reads: {{ toJson $run.reads }}
limits:
  nodes: {{ int64 $run.limits.nodes }}
  gpus_per_node: {{ int64 $run.limits.gpusPerNode }}
  gpus: {{ int64 $run.limits.gpus }}
  images: {{ toJson $run.limits.images }}
  queues: {{ toJson $run.limits.queues }}
backend: {{ $run.backend }}
staging_slices: {{ $run.stagingSlices }}
parallel_cells: {{ $run.parallelCells }}
links: {{- toYaml $run.links | nindent 2 }}
{{- with $run.placement }}
placement:
  {{- range $key, $value := . }}
  {{ $key }}: {{ if kindIs "string" $value }}{{ toJson $value }}{{ else }}{{ include "firstsight.number" $value }}{{ end }}
  {{- end }}
{{- end }}
jobs:
  image: {{ include "firstsight.image" (list $root "trainer") }}
  nodes: {{ $jobs.nodes }}
  gpus_per_node: {{ $jobs.gpusPerNode }}
  {{- if ne $jobs.gpuResource "nvidia.com/gpu" }}
  gpu_resource: {{ $jobs.gpuResource }}
  {{- end }}
  gpu_memory: {{ include "firstsight.number" $jobs.gpuMemory | quote }}
  cpu: {{ include "firstsight.number" $jobs.cpu | quote }}
  memory: {{ include "firstsight.number" $jobs.memory | quote }}
  shared_memory: {{ include "firstsight.number" $jobs.sharedMemory | quote }}
  staging_cpu: {{ include "firstsight.number" $jobs.stagingCpu | quote }}
  staging_memory: {{ include "firstsight.number" $jobs.stagingMemory | quote }}
  {{- with $jobs.ephemeralStorage }}
  ephemeral_storage: {{ include "firstsight.number" . | quote }}
  {{- end }}
  {{- with $jobs.stagingEphemeralStorage }}
  staging_ephemeral_storage: {{ include "firstsight.number" . | quote }}
  {{- end }}
  {{- if $run.workloadIdentity.enabled }}
  service_account: {{ include "firstsight.jobAccount" $run }}
  {{- with $run.workloadIdentity.audience }}
  token_audience: {{ . | quote }}
  {{- end }}
  {{- else }}
  store_secret: {{ $run.name }}
  {{- end }}
  store_environment: {{- toYaml $environment | nindent 4 }}
  {{- with $root.Values.network.privateSources }}
  private_sources: {{- toYaml . | nindent 4 }}
  {{- end }}
  ttl_seconds: {{ int64 $jobs.ttlSeconds }}
  queue_label: {{ $jobs.queueLabel }}
  labels: {{- toYaml $labels | nindent 4 }}
  annotations: {{- toYaml $jobs.annotations | nindent 4 }}
  scheduler_name: {{ $jobs.schedulerName | quote }}
  metrics_port: {{ $jobs.metricsPort }}
  max_incidents: {{ int64 $jobs.maxIncidents }}
  patience:
    {{- range $key, $seconds := $jobs.patience }}
    {{ $key }}: {{ int64 $seconds }}
    {{- end }}
  {{- if kindIs "invalid" $jobs.runAsUser }}
  run_as_user: null
  {{- else if ne (int64 $jobs.runAsUser) 10001 }}
  run_as_user: {{ int64 $jobs.runAsUser }}
  {{- end }}
  pod_template: {{- include "firstsight.podTemplate" . | nindent 4 }}
  {{- range $purpose := list "training" "staging" "evaluation" }}
  {{- with get $jobs (printf "%sPodTemplate" $purpose) }}
  {{ $purpose }}_pod_template: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
{{- end -}}

{{/* What the chart itself merges into jobs (pull Secrets, a private CA), with the podTemplate from the values on top.
Lists are concatenated: pipelines/cluster/merge.py merges entries of one name. */}}
{{- define "firstsight.podTemplate" -}}
{{- $root := first . -}}{{- $run := last . -}}
{{- $spec := dict -}}
{{- with $root.Values.images.pullSecrets }}
{{- $secrets := list -}}
{{- range . }}{{ $secrets = append $secrets (dict "name" .) }}{{ end -}}
{{- $_ := set $spec "imagePullSecrets" $secrets -}}
{{- end }}
{{- if include "firstsight.storeCa" $root }}
{{- $map := dict "name" $run.name "items" (list (dict "key" "ca.crt" "path" "ca.crt")) -}}
{{- $_ := set $spec "volumes" (list (dict "name" "store-ca" "configMap" $map)) -}}
{{- $mount := dict "name" "store-ca" "mountPath" "/etc/firstsight" "readOnly" true -}}
{{- $_ := set $spec "containers" (list (dict "name" "pytorch" "volumeMounts" (list $mount))) -}}
{{- end }}
{{- range $key, $theirs := pick (default (dict) $run.jobs.podTemplate.spec) "imagePullSecrets" "volumes" "containers" }}
{{- $_ := set $spec $key (concat (default (list) (index $spec $key)) $theirs) -}}
{{- end }}
{{- $template := ternary (dict "spec" $spec) (dict) (gt (len $spec) 0) -}}
{{- mustMergeOverwrite (deepCopy $run.jobs.podTemplate) $template | toYaml -}}
{{- end -}}

{{/* The pull Secrets of a profile's training pods, as a JSON list: Trainer 2.0 takes them from the TrainingRuntime alone. Usage
{{ include "firstsight.runtimePullSecrets" (list . $run) }} */}}
{{- define "firstsight.runtimePullSecrets" -}}
{{- $secrets := list -}}
{{- range (first .).Values.images.pullSecrets }}{{ $secrets = append $secrets (dict "name" .) }}{{ end -}}
{{- range $template := list (last .).jobs.podTemplate (last .).jobs.trainingPodTemplate -}}
{{- $secrets = concat $secrets (default (list) (dig "spec" "imagePullSecrets" (list) $template)) -}}
{{- end -}}
{{- $secrets | uniq | toJson -}}
{{- end -}}
