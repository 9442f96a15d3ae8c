{{/* Egress to the cluster's DNS. */}}
{{- define "firstsight.egressDns" -}}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .Values.networkPolicy.dnsNamespace }}}}
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
{{- end -}}

{{/* Egress to the object store. */}}
{{- define "firstsight.egressStore" -}}
{{- $external := .Values.objectStore.external -}}
{{- if .Values.objectStore.bundled.enabled -}}
- to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ .Release.Namespace }}}}
      podSelector: {matchLabels: {{ include "firstsight.selector" (list . "minio") | fromYaml | toJson }}}
  ports: [{protocol: TCP, port: 9000}]
{{- else -}}
{{- $port := get (urlParse (default "https://s3" $external.endpoint)) "host" | regexFind ":[0-9]+$" | trimPrefix ":" -}}
- to:
    {{- range .Values.networkPolicy.storeCidrs }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
  ports: [{protocol: TCP, port: {{ default (ternary 80 443 (hasPrefix "http://" $external.endpoint)) $port | int }}}]
{{- end -}}
{{- end -}}

{{/* Egress to the API server. */}}
{{- define "firstsight.egressApiServer" -}}
- to:
    {{- range .Values.networkPolicy.apiServerCidrs }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
  ports:
    {{- range .Values.networkPolicy.apiServerPorts }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}

{{/* Ingress of Prometheus: usage {{ include "firstsight.ingressMetrics" (list . 8080) }} */}}
{{- define "firstsight.ingressMetrics" -}}
- from:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ (first .).Values.metrics.namespace }}}}
  ports: [{protocol: TCP, port: {{ last . }}}]
{{- end -}}
