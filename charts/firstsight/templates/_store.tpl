{{/* The store's non-secret environment, as YAML: usage {{ include "firstsight.storeEnvironment" . | fromYaml }} */}}
{{- define "firstsight.storeEnvironment" -}}
{{- $store := .Values.objectStore -}}
{{- if $store.bundled.enabled -}}
AWS_ENDPOINT_URL_S3: http://{{ include "firstsight.name" (list . "minio") }}.{{ .Release.Namespace }}.svc:9000
AWS_REGION: us-east-1
FIRSTSIGHT_S3_ADDRESSING: path
{{- else -}}
AWS_REGION: {{ $store.external.region }}
{{- with $store.external.endpoint }}
AWS_ENDPOINT_URL_S3: {{ . }}
{{- end }}
{{- with $store.external.addressing }}
FIRSTSIGHT_S3_ADDRESSING: {{ . }}
{{- end }}
{{- if $store.external.caBundle }}
FIRSTSIGHT_S3_CA: /etc/firstsight/ca.crt
{{- end }}
{{- end -}}
{{- end -}}

{{/* CA certificates to trust for TLS to the store; empty: the public CAs. */}}
{{- define "firstsight.storeCa" -}}
{{- if .Values.objectStore.external.enabled }}{{ .Values.objectStore.external.caBundle }}{{ end -}}
{{- end -}}

{{/* Name of the Secret with the credentials that may make buckets (and, bundled, users). */}}
{{- define "firstsight.storeSecret" -}}
{{- $store := .Values.objectStore -}}
{{- if $store.external.enabled -}}
{{- $store.external.existingSecret -}}
{{- else -}}
{{- default (include "firstsight.name" (list . "minio")) $store.bundled.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* The bundled store's root password: from the Secret on the cluster, otherwise a new one; the same throughout one rendering. */}}
{{- define "firstsight.rootPassword" -}}
{{- if not (hasKey .Values.objectStore.bundled "rootPassword") -}}
{{- if not (or .Values.objectStore.bundled.unstableCredentials (include "firstsight.seesCluster" .)) -}}
{{- fail "objectStore.bundled.existingSecret must name a Secret if the chart is rendered without access to the cluster (helm template, GitOps, --dry-run=client): each rendering would generate other credentials. Create one (the chart's README: Credentials), render with --dry-run=server, or set objectStore.bundled.unstableCredentials=true to view what is rendered, never to apply it" -}}
{{- end -}}
{{- $kept := lookup "v1" "Secret" .Release.Namespace (include "firstsight.storeSecret" .) -}}
{{- $password := dig "data" "root-password" "" $kept | b64dec | default (randAlphaNum 40) -}}
{{- $_ := set .Values.objectStore.bundled "rootPassword" $password -}}
{{- end -}}
{{- .Values.objectStore.bundled.rootPassword -}}
{{- end -}}

{{/* Whether the chart makes the bundled store's users: "true" or nothing. */}}
{{- define "firstsight.makesUsers" -}}
{{- if and .Values.objectStore.bundled.enabled (not .Values.objectStore.bundled.existingSecret) }}true{{ end -}}
{{- end -}}

{{/* Whether the chart makes a run's Secret: "true" or nothing. Usage: {{ include "firstsight.makesSecret" $run }} */}}
{{- define "firstsight.makesSecret" -}}
{{- if and .secret.create (not .workloadIdentity.enabled) }}true{{ end -}}
{{- end -}}

{{/* A run's user of the bundled store, as YAML. Its key derives from the root password, so that nothing else has to be stored; and from
secret.rotation, so that one profile can have another.
Usage: {{ include "firstsight.user" (list . $run) | fromYaml }} */}}
{{- define "firstsight.user" -}}
{{- $root := first . -}}{{- $run := last . -}}
{{- $name := printf "firstsight.%s.%s" $run.namespace $run.name -}}
accessKey: {{ $name }}
secretKey: {{ printf "%s %s%s" (include "firstsight.rootPassword" $root) $name $run.secret.rotation | sha256sum | trunc 40 }}
root: {{ include "firstsight.runRoot" . }}
{{- with $run.reads }}
reads: {{ toJson . }}
{{- end }}
{{- end -}}
