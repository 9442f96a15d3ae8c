{{/* Refuse values in which a key of the chart's is missing: usage
{{ include "firstsight.checkComplete" (list .Values $tree "") }}, `$tree` the keys with those below each. */}}
{{- define "firstsight.checkComplete" -}}
{{- $values := index . 0 -}}{{- $path := index . 2 -}}
{{- range $key, $below := index . 1 -}}
{{- $here := printf "%s.%s" $path $key | trimPrefix "." -}}
{{- if or (not (hasKey $values $key)) (kindIs "invalid" (get $values $key)) -}}
{{- fail (printf "%s is missing: the values are those of an earlier chart alone. Upgrade with --reset-then-reuse-values in place of --reuse-values, or with your values file; where that has null for it, leave the key out" $here) -}}
{{- end -}}
{{- if $below }}{{ include "firstsight.checkComplete" (list (get $values $key) $below $here) }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Refuse a second release in a namespace: in the release's, or in one that has runs of another. Without access to a cluster, Helm's
own rule holds that an object has one owner. Every release has a Role in each of its namespaces. */}}
{{- define "firstsight.checkAlone" -}}
{{- range $namespace := append (include "firstsight.runNamespaces" . | fromJsonArray) .Release.Namespace | uniq -}}
{{- $found := lookup "rbac.authorization.k8s.io/v1" "Role" $namespace "" -}}
{{- range default (list) $found.items -}}
{{- $labels := default (dict) .metadata.labels -}}
{{- $other := get $labels "app.kubernetes.io/instance" -}}
{{- $home := dig "metadata" "annotations" "meta.helm.sh/release-namespace" $.Release.Namespace . -}}
{{- $same := and (eq (toString $other) $.Release.Name) (eq $home $.Release.Namespace) -}}
{{- if and (eq (default "" (get $labels "app.kubernetes.io/part-of")) "firstsight") $other (not $same) -}}
{{- fail (printf "namespace %s belongs to release %s of firstsight%s already: two reapers would end each other's jobs there, and neither release could be uninstalled while the other's jobs live. Install %s into a namespace of its own and name others in profiles.<name>.namespaces, or give %s a further profile" $namespace $other (ternary "" (printf " in %s" $home) (eq $home $.Release.Namespace)) $.Release.Name $other) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuse labels and variables that are the chart's own: a value that it would have to drop, or by which nothing would be found. */}}
{{- define "firstsight.checkLabels" -}}
{{- $own := "^(app\\.kubernetes\\.io/(name|instance|component|part-of|version|managed-by)|helm\\.sh/chart|firstsight\\.dev/.*|sidecar\\.istio\\.io/inject)$" -}}
{{- $metrics := .Values.metrics -}}
{{- $given := dict "commonLabels" .Values.commonLabels "pods.labels" .Values.pods.labels "pods.annotations" .Values.pods.annotations "metrics.labels" $metrics.labels "metrics.dashboard.labels" $metrics.dashboard.labels -}}
{{- range $path, $labels := $given -}}
{{- range $label, $_ := $labels -}}
{{- if regexMatch $own $label -}}
{{- fail (printf "%s must not set %s: the chart sets it itself, and Services, network policies, alerts and Helm go by it; leave it out, or choose another label" $path $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := .Values.pods.env -}}
{{- if regexMatch "^(HOME|FIRSTSIGHT_(PROFILE|S3_CA|S3_ADDRESSING)|KFP_(ENDPOINT|NAMESPACE|CA)|KF_PIPELINES_SA_TOKEN_PATH|AWS_(ENDPOINT_URL_S3|REGION|ACCESS_KEY_ID|SECRET_ACCESS_KEY|WEB_IDENTITY_TOKEN_FILE))$" $name -}}
{{- fail (printf "pods.env must not set %s: the chart sets it itself, from objectStore, kubeflow and the Secrets; leave it out" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuse what the store's hooks would refuse later: usage {{ include "firstsight.checkStore" (list . $runs) }} */}}
{{- define "firstsight.checkStore" -}}
{{- $root := first . -}}{{- $store := $root.Values.objectStore -}}
{{- if regexMatch "^[0-9]+(\\.[0-9]+){3}$" $store.bucket -}}
{{- fail (printf "objectStore.bucket must not look like an IP address, which S3 takes for a host, got %s: choose a name with a letter" $store.bucket) -}}
{{- end -}}
{{- range $path, $certificates := dict "objectStore.external.caBundle" $store.external.caBundle "kubeflow.caBundle" $root.Values.kubeflow.caBundle -}}
{{- if and $certificates (not (contains "-----BEGIN CERTIFICATE-----" $certificates)) -}}
{{- fail (printf "%s must be certificates in PEM, and has no -----BEGIN CERTIFICATE----- in it: give the file's content (--set-file %s=ca.crt), not its name" $path $path) -}}
{{- end -}}
{{- end -}}
{{- range $run := last . -}}
{{- $place := include "firstsight.runRoot" (list $root $run) -}}
{{- if and $store.bundled.enabled (include "firstsight.makesSecret" $run) (not (regexMatch "^s3://[^/]+/[^/]" $place)) -}}
{{- fail (printf "profiles.%s.root must be s3://bucket/prefix on the bundled store, whose hook makes a user for what lies below the prefix, got %s: add a prefix such as %s/{namespace}, or leave root out" $run.name $place (ternary ($place | trimSuffix "/") (printf "s3://%s" $store.bucket) (hasPrefix "s3://" $place))) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuse what a run's first step or its launcher would refuse of its profile (pipelines/profile): usage
{{ include "firstsight.checkRun" (list . $run) }} */}}
{{- define "firstsight.checkRun" -}}
{{- $root := first . -}}{{- $run := last . -}}{{- $jobs := $run.jobs -}}{{- $key := printf "profiles.%s" $run.name -}}
{{- $inUrl := include "firstsight.secretInUrl" $root -}}{{- $named := include "firstsight.secretName" $root -}}
{{- $place := include "firstsight.runRoot" (list $root $run) -}}
{{- if and (regexMatch (include "firstsight.systemFolder" $root) $place) (not (regexMatch "^/usr/local(/|$)" $place)) -}}
{{- fail (printf "%s.root must be a folder for data, such as /data/firstsight, not one of the system's, got %s" $key $place) -}}
{{- end -}}
{{- $port := get $run.placement "metrics_port" -}}
{{- if and (hasKey $run.placement "metrics_port") (ne $run.backend "local") (lt (int $port) 1024) -}}
{{- fail (printf "%s.placement.metrics_port must be between 1024 and 65535 where jobs run on the cluster, got %d: leave it out for jobs.metricsPort" $key (int $port)) -}}
{{- end -}}
{{- $served := include "firstsight.metricsPort" $run | int -}}
{{- if and (ne $run.backend "local") (has $served (list 23456 29400)) -}}
{{- fail (printf "%s.%s must not be %d, at which the processes of a job find each other: choose another port" $key (ternary "placement.metrics_port" "jobs.metricsPort" (hasKey $run.placement "metrics_port")) $served) -}}
{{- end -}}
{{- $ranks := get $run.placement "processes_per_node" -}}
{{- if and $ranks $jobs.gpusPerNode (ne (int $ranks) (int $jobs.gpusPerNode)) -}}
{{- fail (printf "%s.placement.processes_per_node must be jobs.gpusPerNode, %d, since there is one process for each GPU, got %d: leave it out" $key (int $jobs.gpusPerNode) (int $ranks)) -}}
{{- end -}}
{{- range $name, $address := $run.links -}}
{{- if regexMatch $inUrl $address -}}
{{- fail (printf "%s.links.%s must be an address without credentials, since every run shows it: leave user, signature or token out" $key $name) -}}
{{- end -}}
{{- end -}}
{{- range $variable, $value := $jobs.environment -}}
{{- if regexMatch "^FIRSTSIGHT_(PROFILE|STORE_WITHIN|PRIVATE_SOURCES)$" $variable -}}
{{- fail (printf "%s.jobs.environment must not set %s: the chart sets it itself, from root, reads and network.privateSources; leave it out" $key $variable) -}}
{{- end -}}
{{- include "firstsight.checkVariable" (list $root (printf "%s.jobs.environment" $key) $variable $value) -}}
{{- end -}}
{{- range $name, $template := $jobs -}}
{{- if and (hasSuffix "podtemplate" (lower $name)) (kindIs "map" $template) -}}
{{- include "firstsight.checkTemplate" (list $root (printf "%s.jobs.%s" $key $name) (default (dict) $template.spec)) -}}
{{- end -}}
{{- end -}}
{{- $accounts := list (list "serviceAccount" (include "firstsight.runAccount" $run) $run.serviceAccount.create) -}}
{{- with include "firstsight.jobAccount" $run }}{{ $accounts = append $accounts (list "workloadIdentity" . $run.workloadIdentity.create) }}{{ end -}}
{{- range $account := $accounts -}}
{{- if and (last $account) (eq (index $account 1) "default") -}}
{{- fail (printf "%s.%s: every namespace has an account named default, which the chart cannot make: choose another name (%s.%s.name), or set create=false to use it" $key (first $account) $key (first $account)) -}}
{{- end -}}
{{- range $part := list "reaper" "uninstall" "pipeline" -}}
{{- if and (eq $run.namespace $root.Release.Namespace) (eq (index $account 1) (include "firstsight.name" (list $root $part))) -}}
{{- fail (printf "%s.%s: account %s is the chart's own in namespace %s, with rights that runs must not have: choose another name (%s.%s.name)" $key (first $account) (index $account 1) $run.namespace $key (first $account)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $part := list "minio" "store-ca" "pipeline" "dashboard" -}}
{{- if and (eq $run.namespace $root.Release.Namespace) (eq $run.name (include "firstsight.name" (list $root $part))) -}}
{{- fail (printf "%s: the chart has an object of its own named %s in namespace %s: give the profile another name, or another namespace" $key $run.name $run.namespace) -}}
{{- end -}}
{{- end -}}
{{- $identity := $run.workloadIdentity -}}
{{- if and $identity.enabled $identity.audience (not (hasKey $jobs.environment "AWS_ROLE_ARN")) (not (regexMatch "role-arn" (toJson $identity.annotations))) -}}
{{- fail (printf "%s.workloadIdentity.audience needs AWS_ROLE_ARN in %s.jobs.environment: a token alone does not say which role it is for" $key $key) -}}
{{- end -}}
{{- end -}}

{{/* Refuse a credential in a variable, which all who may read profiles and jobs would see; it is not repeated: usage
{{ include "firstsight.checkVariable" (list . $path $variable $value) }} */}}
{{- define "firstsight.checkVariable" -}}
{{- $root := index . 0 -}}{{- $variable := index . 2 -}}
{{- $secret := and (regexMatch (include "firstsight.secretName" $root) $variable) (not (regexMatch "(?i)_(FILE|PATH)$" $variable)) -}}
{{- if or $secret (regexMatch (include "firstsight.secretInUrl" $root) (index . 3)) -}}
{{- fail (printf "%s: %s must not hold a credential, which all who may read profiles and jobs would see: put it into the profile's Secret, or into another one that a pod template takes it from (valueFrom)" (index . 1) $variable) -}}
{{- end -}}
{{- end -}}

{{/* Refuse a pod template that the launcher cannot lay over a pod: usage {{ include "firstsight.checkTemplate" (list . $path $spec) }} */}}
{{- define "firstsight.checkTemplate" -}}
{{- $root := index . 0 -}}{{- $path := printf "%s.spec" (index . 1) -}}{{- $spec := index . 2 -}}
{{- if not (kindIs "map" (default (dict) $spec.nodeSelector)) -}}
{{- fail (printf "%s.nodeSelector must be a mapping of labels to values, got %s" $path (toJson $spec.nodeSelector)) -}}
{{- end -}}
{{- if not (kindIs "slice" (default (list) $spec.containers)) -}}
{{- fail (printf "%s.containers must be a list of mappings with a name each (the trainer's container is called pytorch), got a %s" $path (kindOf $spec.containers)) -}}
{{- end -}}
{{- range $index, $container := $spec.containers -}}
{{- $here := printf "%s.containers[%d]" $path $index -}}
{{- if or (not (kindIs "map" $container)) (not (get (ternary $container (dict) (kindIs "map" $container)) "name")) -}}
{{- fail (printf "%s must be a mapping with a name (the trainer's container is called pytorch): containers are merged by it" $here) -}}
{{- end -}}
{{- range $entry := $container.env -}}
{{- if and (kindIs "map" $entry) (kindIs "string" (get (ternary $entry (dict) (kindIs "map" $entry)) "value")) (not (hasKey $entry "valueFrom")) -}}
{{- include "firstsight.checkVariable" (list $root (printf "%s.env" $here) (get $entry "name") (get $entry "value")) -}}
{{- end -}}
{{- end -}}
{{- $mounts := default (list) $container.volumeMounts -}}
{{- if not (kindIs "slice" $mounts) -}}
{{- fail (printf "%s.volumeMounts must be a list of mappings, got a %s" $here (kindOf $mounts)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
