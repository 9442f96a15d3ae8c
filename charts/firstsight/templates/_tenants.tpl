{{/* Reject credentials of a run that contradict each other or give access to another tenant's root.
Usage: {{ include "firstsight.checkCredentials" (list . $run $opens) }}, `$opens` a dict: root by Secret of the runs before. */}}
{{- define "firstsight.checkCredentials" -}}
{{- $root := index . 0 -}}{{- $run := index . 1 -}}{{- $opens := index . 2 -}}
{{- $store := $root.Values.objectStore -}}{{- $key := printf "profiles.%s" $run.name -}}{{- $secret := $run.secret.existingSecret -}}
{{- if and $run.workloadIdentity.enabled $store.bundled.enabled -}}
{{- fail (printf "%s.workloadIdentity: the bundled store does not support cloud identities: use objectStore.external" $key) -}}
{{- end -}}
{{- if and $run.workloadIdentity.enabled $secret -}}
{{- fail (printf "%s: workloadIdentity.enabled and secret.existingSecret both provide credentials: set only one" $key) -}}
{{- end -}}
{{- if and $run.workloadIdentity.enabled (not $run.workloadIdentity.create) (not $run.workloadIdentity.name) -}}
{{- fail (printf "%s.workloadIdentity: with create=false, the name of a service account is required" $key) -}}
{{- end -}}
{{- if and $run.workloadIdentity.enabled $run.workloadIdentity.create $run.serviceAccount.create (eq (include "firstsight.jobAccount" $run) (include "firstsight.runAccount" $run)) -}}
{{- fail (printf "%s.workloadIdentity.name: %s is the steps' account (serviceAccount): set workloadIdentity.create=false to share it, or another name" $key (include "firstsight.jobAccount" $run)) -}}
{{- end -}}
{{- if and $secret $store.bundled.enabled -}}
{{- fail (printf "%s.secret.existingSecret is for an external store: the bundled one makes a user for each profile" $key) -}}
{{- end -}}
{{- if and $secret (not $run.secret.create) -}}
{{- fail (printf "%s.secret: existingSecret is the Secret that create=true copies, so it needs create=true: set create=true, or remove existingSecret" $key) -}}
{{- end -}}
{{- if and $store.external.enabled (include "firstsight.makesSecret" $run) -}}
{{- if not $secret -}}
{{- $kept := lookup "v1" "Secret" $run.namespace $run.name -}}
{{- if ne (dig "metadata" "labels" "app.kubernetes.io/instance" "" $kept) $root.Release.Name -}}
{{- fail (printf "%s.secret.existingSecret must name a Secret in the release's namespace with this profile's own AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (those of objectStore.external.existingSecret can create buckets and access every profile's root); or set secret.create=false, or workloadIdentity.enabled=true" $key) -}}
{{- end -}}
{{- end -}}
{{- if and $secret (eq $secret $store.external.existingSecret) -}}
{{- fail (printf "%s.secret.existingSecret is that of objectStore.external, whose keys can create buckets and access every profile's root: give the profile keys of its own" $key) -}}
{{- end -}}
{{- $place := include "firstsight.runRoot" (list $root $run) -}}
{{- if and $secret (ne (default $place (get $opens $secret)) $place) -}}
{{- fail (printf "%s.secret.existingSecret: Secret %s would give access to both %s and %s: each root needs its own keys ({namespace} in the name is substituted)" $key $secret (get $opens $secret) $place) -}}
{{- end -}}
{{- $_ := set $opens (default "-" $secret) $place -}}
{{- end -}}
{{- end -}}

{{/* Reject tenants whose roots overlap, unless one of them lists what it shares: usage
{{ include "firstsight.checkRoots" (list . $runs) }}. Profiles of one namespace are one tenant. */}}
{{- define "firstsight.checkRoots" -}}
{{- $root := first . -}}{{- $runs := last . -}}
{{- range $one := $runs -}}
{{- $place := include "firstsight.runRoot" (list $root $one) | trimSuffix "/" -}}
{{- range $other := $runs -}}
{{- $theirs := include "firstsight.runRoot" (list $root $other) | trimSuffix "/" -}}
{{- $within := hasPrefix (printf "%s/" $theirs) (printf "%s/" $place) -}}
{{- if and $within (ne $one.namespace $other.namespace) (not (has $place $other.reads)) (not (has $theirs $one.reads)) -}}
{{- fail (printf "profiles.%s.root: %s of namespace %s lies in %s of profiles.%s in namespace %s, so each could change the other's data: give each its own root ({namespace} is substituted), or list it in `reads` to share it" $one.name $place $one.namespace $theirs $other.name $other.namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Reject a profile whose own jobs exceed its limits: usage {{ include "firstsight.checkLimits" $run }} */}}
{{- define "firstsight.checkLimits" -}}
{{- $key := printf "profiles.%s" .name -}}{{- $jobs := .jobs -}}{{- $limits := .limits -}}
{{- $nodes := list "jobs.nodes" (int64 $jobs.nodes) -}}
{{- with get .placement "nodes" }}{{ $nodes = list "placement.nodes" (int64 .) }}{{ end -}}
{{- range $asked := list (append $nodes "nodes") (list "jobs.gpusPerNode" (int64 $jobs.gpusPerNode) "gpusPerNode") -}}
{{- $limit := int64 (get $limits (index $asked 2)) -}}
{{- if and $limit (gt (index $asked 1) $limit) -}}
{{- fail (printf "%s.%s is %d, but %s.limits.%s allows only %d: lower one or raise the other" $key (index $asked 0) (index $asked 1) $key (index $asked 2) $limit) -}}
{{- end -}}
{{- end -}}
{{- $gpus := mul (last $nodes) (int64 $jobs.gpusPerNode) (max 1 (int64 .parallelCells)) -}}
{{- if and $limits.gpus (gt $gpus (int64 $limits.gpus)) -}}
{{- fail (printf "%s.%s, jobs.gpusPerNode and parallelCells add up to %d GPUs at once, but %s.limits.gpus allows only %d: lower one or raise the other" $key (first $nodes) $gpus $key (int64 $limits.gpus)) -}}
{{- end -}}
{{- $queue := default (get $jobs.labels $jobs.queueLabel) $jobs.queue -}}
{{- if and $limits.queues $queue (not (has $queue $limits.queues)) -}}
{{- fail (printf "%s.jobs: the queue is %s (queue, or labels.%s), which %s.limits.queues does not list: name one of those, or list it" $key $queue $jobs.queueLabel $key) -}}
{{- end -}}
{{- end -}}
