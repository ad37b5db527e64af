{{/* The name that everything of this release begins with. */}}
{{- define "lrp.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Of things that no namespace keeps apart: two releases may have one name. */}}
{{- define "lrp.clusterName" -}}
{{- if eq .Release.Namespace "kube-system" }}{{ include "lrp.name" . }}
{{- else }}{{ include "lrp.name" . }}-{{ .Release.Namespace }}
{{- end }}
{{- end }}

{{/* What pods are selected by; takes (dict "root" $ "component" NAME). Never changes: selectors are immutable. */}}
{{- define "lrp.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "lrp.labels" -}}
{{ include "lrp.selector" . }}
app.kubernetes.io/part-of: {{ .root.Chart.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "lrp.image" -}}
{{ .Values.image.repository }}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}
{{- else }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* The file of settings: the values that are settings, as they are. The agent takes a null as not said. */}}
{{- define "lrp.settings" -}}
{{- $settings := pick .Values "kubeProxyReplacement" "socketLB" "localRedirectPolicies" "localRedirectPolicy" "enableIPv4" "enableIPv6" "terminateTCP" }}
{{- $_ := set $settings "bpf" (pick .Values.bpf "lbMapMax" "lbBackendMapMax" "ctTcpMax") }}
{{- toYaml $settings }}
{{- end }}

{{/* "true" if kube-proxy is replaced, as the agent reads it. */}}
{{- define "lrp.replaces" -}}
{{- has (toString .Values.kubeProxyReplacement) (list "true" "strict") | ternary "true" "" }}
{{- end }}

{{/* Where the API server is, in place of what the kubelet tells every pod. */}}
{{- define "lrp.apiServer" -}}
{{- if .Values.k8sServiceHost }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .Values.k8sServiceHost | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .Values.k8sServicePort | default "6443" | toString | quote }}
{{- end }}
{{- end }}
