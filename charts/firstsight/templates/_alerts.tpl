{{/* Labels of an alert and the beginning of its annotations: usage {{ include "firstsight.alert" (list . "critical" "Name") }} */}}
{{- define "firstsight.alert" }}
          {{- $rule := (index . 0).Values.metrics.prometheusRule }}
          labels: {{- mustMergeOverwrite (dict "severity" (index . 1)) $rule.alertLabels | toYaml | nindent 12 }}
          annotations:
            {{- /* The default of 0.1.0, a link that leads nowhere, is still in the values that --reuse-values carries over. */}}
            {{- with ternary "" $rule.runbookUrl (eq $rule.runbookUrl "docs/RUNBOOK.md#") }}
            runbook_url: {{ printf "%s%s" . (index $ 2 | lower) | quote }}
            {{- else }}
            runbook: {{ printf "docs/RUNBOOK.md of firstsight, %s" (index . 2) }}
            {{- end }}
{{- end }}
