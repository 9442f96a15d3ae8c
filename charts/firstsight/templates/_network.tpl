{{/* Peers by address, from a list of CIDRs and of mappings of `cidr` and `except`: usage
to: {{ include "firstsight.peers" .Values.networkPolicy.storeCidrs }} */}}
{{- define "firstsight.peers" -}}
{{- $peers := list -}}
{{- range . }}{{ $peers = append $peers (dict "ipBlock" (ternary (dict "cidr" .) . (kindIs "string" .))) }}{{ end -}}
{{- toJson $peers -}}
{{- end -}}

{{/* The bits of an address as text, 32 or 128: usage {{ include "firstsight.bits" "fd00::1" }} */}}
{{- define "firstsight.bits" -}}
{{- if contains ":" . -}}
{{- $address := . -}}
{{- with regexFind "[0-9.]+[.][0-9]+$" . -}}
{{- $parts := splitList "." . -}}
{{- $groups := printf "%02x%02x:%02x%02x" (atoi (index $parts 0)) (atoi (index $parts 1)) (atoi (index $parts 2)) (atoi (index $parts 3)) -}}
{{- $address = printf "%s%s" (trimSuffix . $address) $groups -}}
{{- end -}}
{{- $halves := splitn "::" 2 $address -}}
{{- $first := splitList ":" $halves._0 | compact -}}{{- $last := splitList ":" (default "" $halves._1) | compact -}}
{{- range $first }}{{ printf "%016b" (int64 (printf "0x%s" .)) }}{{ end -}}
{{- range until (int (sub 8 (add (len $first) (len $last)))) }}{{ repeat 16 "0" }}{{ end -}}
{{- range $last }}{{ printf "%016b" (int64 (printf "0x%s" .)) }}{{ end -}}
{{- else -}}
{{- range splitList "." . }}{{ printf "%08b" (atoi .) }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* "true" if the first CIDR contains the second, which may be the same: usage
{{ include "firstsight.contains" (list "10.0.0.0/8" "10.1.0.0/16") }} */}}
{{- define "firstsight.contains" -}}
{{- $outer := splitList "/" (first .) -}}{{- $inner := splitList "/" (last .) -}}
{{- $whole := include "firstsight.bits" (first $outer) -}}{{- $part := include "firstsight.bits" (first $inner) -}}
{{- $length := atoi (last $outer) -}}
{{- if and (eq (len $whole) (len $part)) (ge (atoi (last $inner)) $length) (eq (trunc $length $whole) (trunc $length $part)) }}true{{ end -}}
{{- end -}}

{{/* Refuse an IPv6 CIDR that Kubernetes would refuse, or that stands for IPv4: usage {{ include "firstsight.checkCidr" (list $path $cidr) }} */}}
{{- define "firstsight.checkCidr" -}}
{{- $cidr := last . -}}
{{- if contains ":" $cidr -}}
{{- $address := regexReplaceAll "(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}$" (splitList "/" $cidr | first) "0:0" -}}
{{- $groups := splitList ":" $address | compact | len -}}
{{- $some := "([0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4})*)" -}}
{{- $whole := and (eq $groups 8) (regexMatch (printf "^%s$" $some) $address) -}}
{{- if not (or $whole (and (lt $groups 8) (regexMatch (printf "^%s?::%s?$" $some $some) $address))) -}}
{{- fail (printf "%s must be a CIDR, such as 10.0.0.0/8 or fd00::/8, got %s: its address is no IPv6 address" (first .) $cidr) -}}
{{- end -}}
{{- if include "firstsight.contains" (list "::ffff:0:0/96" $cidr) -}}
{{- fail (printf "%s must not be an IPv4 range written as IPv6, which no packet carries, got %s: write it as IPv4" (first .) $cidr) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where clouds hand out credentials, beside the link-local ranges, as a JSON list: Alibaba, Oracle, Azure, AWS, Google, and AWS behind
NAT64. No private source opens them (trainer/staging/remote/addresses.py). */}}
{{- define "firstsight.metadataRanges" -}}
["100.100.100.200/32", "192.0.0.192/32", "168.63.129.16/32", "fd00:ec2::/32", "fd20:ce::/32", "64:ff9b::a9fe:0/112"]
{{- end -}}

{{/* Egress to the cluster's DNS: its pods, and the addresses at which nodes answer themselves. */}}
{{- define "firstsight.egressDns" -}}
{{- $policy := .Values.networkPolicy -}}
- to:
    - namespaceSelector: {{ include "firstsight.namespaceSelector" $policy.dnsNamespace }}
  ports:
    {{- range $policy.dnsPorts }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- with $policy.dnsCidrs }}
- to: {{ include "firstsight.peers" . }}
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
{{- end }}
{{- end -}}

{{/* A selector for the namespace with this name; empty: any namespace. */}}
{{- define "firstsight.namespaceSelector" -}}
{{- with . }}{matchLabels: {kubernetes.io/metadata.name: {{ . }}}}{{ else }}{}{{ end -}}
{{- end -}}

{{/* Namespace of the Service that a URL names, if it is inside the cluster; otherwise empty. */}}
{{- define "firstsight.urlNamespace" -}}
{{- $host := get (urlParse .) "host" | lower -}}
{{- if or (regexMatch "^[a-z0-9-]+\\.[a-z0-9-]+\\.svc(\\.|:|$)" $host) (regexMatch "^[a-z0-9-]+\\.[a-z0-9-]+:[0-9]+$" $host) -}}
{{- index (splitList "." (regexReplaceAll ":[0-9]+$" $host "")) 1 -}}
{{- end -}}
{{- end -}}

{{/* Port of a URL. */}}
{{- define "firstsight.urlPort" -}}
{{- $parts := urlParse . -}}
{{- default (ternary "80" "443" (eq (get $parts "scheme") "http")) (get $parts "host" | regexFind ":[0-9]+$" | trimPrefix ":") -}}
{{- end -}}

{{/* Egress to a URL: to any port of its namespace where it names a Service, since policies see the pods' port, which may differ
from the Service's; else to its port at these CIDRs. `name.other:80` and `name.other.svc.example.org` may be either. Usage
{{ include "firstsight.egressUrl" (list $url $cidrs) }} */}}
{{- define "firstsight.egressUrl" -}}
{{- $url := first . -}}{{- $cidrs := last . -}}
{{- $rules := list -}}
{{- with include "firstsight.urlNamespace" $url -}}
{{- $rules = append $rules (dict "to" (list (dict "namespaceSelector" (include "firstsight.namespaceSelector" . | fromYaml)))) -}}
{{- end -}}
{{- if and $cidrs (not (regexMatch "^[a-z0-9-]+\\.[a-z0-9-]+\\.svc(\\.cluster\\.local\\.?)?(:|$)" (get (urlParse $url) "host" | lower))) -}}
{{- $port := dict "protocol" "TCP" "port" (include "firstsight.urlPort" $url | int) -}}
{{- $rules = append $rules (dict "to" (include "firstsight.peers" $cidrs | fromJsonArray) "ports" (list $port)) -}}
{{- end -}}
{{- with $rules }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* Egress to the object store. */}}
{{- define "firstsight.egressStore" -}}
{{- if .Values.objectStore.bundled.enabled -}}
- to:
    - namespaceSelector: {{ include "firstsight.namespaceSelector" .Release.Namespace }}
      podSelector: {matchLabels: {{ include "firstsight.selector" (list . "minio") | fromYaml | toJson }}}
  ports: [{protocol: TCP, port: 9000}]
{{- else -}}
{{ include "firstsight.egressUrl" (list (default "https://s3" .Values.objectStore.external.endpoint) .Values.networkPolicy.storeCidrs) }}
{{- end -}}
{{- end -}}

{{/* Egress to the API server. */}}
{{- define "firstsight.egressApiServer" -}}
{{- with .Values.networkPolicy.apiServerCidrs -}}
- to: {{ include "firstsight.peers" . }}
  ports:
    {{- range $.Values.networkPolicy.apiServerPorts }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}
{{- end -}}

{{/* Egress for staging: where lists, pictures and archives are fetched from. Empty if nothing may be fetched. */}}
{{- define "firstsight.egressStaging" -}}
{{- $private := list -}}
{{- range $cidr := .Values.network.privateSources }}
{{- $closed := list -}}
{{- range include "firstsight.metadataRanges" $ | fromJsonArray }}{{ if include "firstsight.contains" (list $cidr .) }}{{ $closed = append $closed . }}{{ end }}{{ end -}}
{{- $private = append $private (ternary (dict "cidr" $cidr "except" $closed) $cidr (gt (len $closed) 0)) }}
{{- end -}}
{{- with concat .Values.networkPolicy.stagingCidrs $private -}}
- to: {{ include "firstsight.peers" . }}
  ports:
    {{- range $.Values.networkPolicy.stagingPorts }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end -}}
{{- end -}}

{{/* Ingress of Prometheus: usage {{ include "firstsight.ingressMetrics" (list . 8080 9400) }} */}}
{{- define "firstsight.ingressMetrics" -}}
- from:
    - namespaceSelector: {{ include "firstsight.namespaceSelector" (first .).Values.metrics.namespace }}
  ports:
    {{- range rest . | uniq }}
    - {protocol: TCP, port: {{ int64 . }}}
    {{- end }}
{{- end -}}
