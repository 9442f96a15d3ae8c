{{/* Every profile in each of its namespaces, as a JSON list of profiles with `name` and `namespace`. Usage:
{{ range include "firstsight.runs" . | fromJsonArray }} */}}
{{- define "firstsight.runs" -}}
{{- $runs := list -}}
{{- range $name, $profile := .Values.profiles -}}
{{- if not (kindIs "invalid" $profile) -}}
{{- $whole := mustMergeOverwrite (deepCopy $.Values.profileDefaults) (deepCopy $profile) -}}
{{- $_ := set $whole "jobs" (mustMergeOverwrite (deepCopy $.Values.jobs) $whole.jobs) -}}
{{- range default (list $.Release.Namespace) $whole.namespaces -}}
{{- $runs = append $runs (mustMergeOverwrite (deepCopy $whole) (dict "name" $name "namespace" .)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $runs -}}
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

{{/* A value as text, large whole numbers too: Helm holds numbers as floats, and would write 34359738368 as 3.4359738368e+10. */}}
{{- define "firstsight.number" -}}
{{- if and (kindIs "float64" .) (eq (toString (floor .)) (toString .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end -}}

{{/* profile.yaml (pipelines/profile/profile.py): usage {{ include "firstsight.profile" (list . $run) }} */}}
{{- define "firstsight.profile" -}}
{{- $root := first . -}}{{- $run := last . -}}{{- $jobs := $run.jobs -}}
{{- $environment := include "firstsight.storeEnvironment" $root | fromYaml -}}
{{- if eq $root.Values.logs.format "json" }}{{ $_ := set $environment "FIRSTSIGHT_LOG_FORMAT" "json" }}{{ end -}}
{{- $environment = mustMergeOverwrite $environment $jobs.environment -}}
{{- $labels := deepCopy $jobs.labels -}}
{{- with $jobs.queue }}{{ $_ := set $labels $jobs.queueLabel . }}{{ end -}}
root: {{ include "firstsight.runRoot" . }}
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
  gpu_memory: {{ include "firstsight.number" $jobs.gpuMemory | quote }}
  cpu: {{ include "firstsight.number" $jobs.cpu | quote }}
  memory: {{ include "firstsight.number" $jobs.memory | quote }}
  shared_memory: {{ include "firstsight.number" $jobs.sharedMemory | quote }}
  staging_cpu: {{ include "firstsight.number" $jobs.stagingCpu | quote }}
  staging_memory: {{ include "firstsight.number" $jobs.stagingMemory | quote }}
  store_secret: {{ $run.name }}
  store_environment: {{- toYaml $environment | nindent 4 }}
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
  pod_template: {{- include "firstsight.podTemplate" . | nindent 4 }}
{{- end -}}

{{/* What the chart itself lays over jobs (pull Secrets, a private CA), with the values' own podTemplate over that.
Lists are put one after the other: pipelines/cluster/merge.py merges entries of one name. */}}
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
